"""How the page reads and feels: Markdown, focus, scrolling, screen readers, phones, light and dark, speed."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from nanochat_serve import Finished, TextDelta, ToolCall

DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"> <script>document.title='hacked'</script> "
    "**bold** `a<b` [bad](javascript:document.title='hacked') [good](https://a.test/x) ![pixel](https://b.test/y.png)"
    "\n\n```\n<b>x</b>\n```"
)
RICH = """# A heading

A *slanted*, ***strong and slanted***, __strong__ and ~~struck~~ word; 5*6*7 = 210 and \\*no\\* star.

- one
  - below one
- two

| left | right |
|:-----|------:|
| a    | 1     |

> quoted

Maths: $a_1 * b_2 * c_3$ costs $5 and $6.

~~~python
def f(x):
    return "x"  # a comment
~~~
"""

SIZES_OF_FILES = """["resource", "navigation"].flatMap((kind) => performance.getEntriesByType(kind))
  .map((entry) => entry.encodedBodySize)"""


def answer_with(server, *events):
    server.backend.events = [*events, DONE]


def until(page, condition):
    while not page.evaluate(condition):
        page.wait_for_timeout(5)


def focused(page):
    return page.evaluate(
        "document.activeElement.id || document.activeElement.textContent || document.activeElement.tagName"
    )


# ---- what is written


def test_markdown_as_people_write_it(page, server):
    answer_with(server, TextDelta(RICH))
    page.say("hello")
    body = page.locator(".assistant .body")
    html = body.inner_html()
    assert page.inner_text(".body h3") == "A heading"
    assert "<em><strong>strong and slanted</strong></em>" in html
    assert "<strong>strong</strong>" in html
    assert "<s>struck</s>" in html
    assert "5*6*7 = 210 and *no* star" in body.inner_text()
    assert page.inner_text(".body ul ul li") == "below one"
    assert page.locator(".body td").all_inner_texts() == ["a", "1"]
    assert page.evaluate("document.querySelector('.body td:last-child').style.textAlign") == "right"
    assert page.inner_text(".body blockquote") == "quoted"
    assert page.locator(".body .maths").all_inner_texts() == ["$a_1 * b_2 * c_3$"]
    page.wait_for_selector(".hljs-keyword >> text=def")
    assert page.inner_text(".code code") == 'def f(x):\n    return "x"  # a comment'
    assert not page.faults


def test_a_text_that_comes_in_pieces_looks_like_one_that_comes_whole(page, server):
    pieces = [RICH[start : start + 7] for start in range(0, len(RICH), 7)]
    server.backend.pause_s = 0.005
    answer_with(server, *map(TextDelta, pieces))
    page.say("in pieces")
    server.backend.pause_s = 0
    answer_with(server, TextDelta(RICH))
    page.say("whole")
    page.wait_for_selector(".hljs-keyword >> nth=3")
    one, other = page.locator(".assistant .body").all()
    assert one.inner_html() == other.inner_html()


def test_highlighting_is_loaded_with_the_first_code_and_not_before(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.again()
    page.say("no code")
    assert "markdown-it.js" in asked
    assert "highlight.js" not in asked
    answer_with(server, TextDelta("```js\nlet x = 1\n```"))
    page.say("code")
    page.wait_for_selector(".hljs-keyword")
    assert asked.count("highlight.js") == 1


def test_hostile_text_stays_text_and_nothing_is_fetched_from_elsewhere(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.again()
    answer_with(server, TextDelta(HOSTILE))
    page.say(HOSTILE)
    assert page.title().endswith(" - nanochat")
    links = page.eval_on_selector_all("#messages a", "links => links.map(link => link.href)")
    assert links == ["https://a.test/x", "https://b.test/y.png"]
    assert page.locator("#messages img, #messages script, #messages b").count() == 0
    assert page.inner_text(".assistant pre").strip() == "<b>x</b>"
    assert all(url.startswith((server.url, "data:")) for url in asked)
    assert not page.faults


def test_copy_buttons_copy_and_there_is_none_without_a_text(page, server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer_with(server, TextDelta("```python\nprint(1)\n```"))
    page.say("hello")
    page.click(".code-head button")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
    answer_with(server, ToolCall("1+1", "2"))
    page.say("tool only")
    assert page.locator("[aria-label='Copy answer']").count() == 1


def test_both_directions_of_writing(page, server):
    answer_with(server, TextDelta("שלום עולם"))
    page.say("hello")
    assert page.locator(".body").evaluate_all("all => all.map((body) => getComputedStyle(body).direction)") == [
        "ltr",
        "rtl",
    ]


# ---- reading along


def long_chat(page, server):
    answer_with(server, TextDelta("\n\n".join(f"line {n}" for n in range(60))))
    for text in ("one", "two"):
        page.say(text)


def test_a_reader_who_scrolled_up_stays_and_keeps_a_selection(page, server):
    long_chat(page, server)
    server.answers("word " * 100, pause_s=0.03)
    page.say("three", wait=False)
    page.wait_for_selector("text=word word")
    page.evaluate("document.getElementById('messages').scrollTop = 100")
    page.locator(".assistant .body p").nth(3).click(click_count=3)
    top = page.evaluate("document.getElementById('messages').scrollTop")
    page.wait_for_selector("#stop", state="hidden")
    assert page.evaluate("document.getElementById('messages').scrollTop") == top
    assert page.evaluate("getSelection().toString().trim()") == "line 3"


def test_who_reads_at_the_end_follows(page, server):
    long_chat(page, server)
    at_end = "(() => { const log = document.getElementById('messages');"
    at_end += " return log.scrollHeight - log.scrollTop - log.clientHeight < 2 })()"
    assert page.evaluate(at_end)


def test_an_early_question_is_edited_where_it_stands(page, server):
    long_chat(page, server)
    page.evaluate("document.getElementById('messages').scrollTop = 0")
    page.click("[aria-label='Edit question'] >> nth=0")
    page.wait_for_selector(".editor textarea:focus")
    top = page.locator(".editor").bounding_box()["y"]
    assert 0 < top < page.viewport_size["height"] / 2
    assert page.evaluate("document.getElementById('messages').scrollTop") == 0


def test_only_what_is_new_is_announced_and_once(page, server):
    page.evaluate("""() => {
      globalThis.heard = [];
      const hear = (change) => change.addedNodes.forEach((node) => heard.push(node.textContent));
      new MutationObserver((changes) => changes.forEach(hear))
        .observe(document.getElementById("announce"), { childList: true });
    }""")
    server.answers("first answer", pause_s=0.02)
    page.say("one")
    page.say("two")
    page.click("text=Regenerate >> nth=1")
    page.wait_for_selector("text=2/2")
    page.wait_for_selector("#stop", state="hidden")
    assert [text.strip() for text in page.evaluate("heard")] == ["first answer"] * 3
    assert page.locator("#messages[aria-live], #log[aria-live], [role=log]").count() == 0


def test_the_focus_goes_where_the_work_goes_on(page):
    for text in ("one", "two", "three"):
        page.click("#new-chat")
        page.say(text)
    page.click("#chats >> text=two")
    assert focused(page) == "two"
    page.locator("[aria-label='Delete chat two']").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#chats >> text=two", state="detached")
    assert focused(page) == "one"
    page.locator('text="Undo"').focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".message >> text=two")
    until(page, "document.activeElement.textContent === 'two'")
    page.click('text="Regenerate"')
    page.wait_for_selector("text=2/2")
    assert page.evaluate("document.activeElement !== document.body")


def test_it_can_be_used_with_the_keyboard_alone(page):
    assert focused(page) == "prompt"
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    page.wait_for_selector(".receipt")
    assert page.said[0] == "first\nline"
    assert focused(page) == "prompt"
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".editor textarea:focus")
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    page.wait_for_selector(".empty")
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page) == "toggle-theme":
            break
    page.keyboard.press("Enter")
    assert page.get_attribute("html", "data-theme") in ("light", "dark")


# ---- phones, paper, motion, the first paint


def test_a_phone_has_no_sideways_scrolling_new_lines_and_an_undo_in_sight(phone):
    phone.tap("#prompt")
    phone.keyboard.type("averylongwordwithoutanyspaces" * 8)
    phone.keyboard.press("Enter")
    phone.keyboard.type("and a line")
    assert phone.input_value("#prompt").endswith("\nand a line")
    phone.tap("#send")
    phone.wait_for_selector(".receipt")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    phone.tap("#toggle-sidebar")
    phone.tap("[aria-label^='Delete chat']")
    phone.keyboard.press("Escape")
    phone.tap('text="Undo"')
    phone.wait_for_selector(".message.user")


def test_a_tool_card_wider_than_its_column_can_be_scrolled_by_keys(phone, server):
    answer_with(server, ToolCall("+".join(["123456789"] * 20), "1"))
    phone.fill("#prompt", "add")
    phone.tap("#send")
    phone.wait_for_selector(".receipt")
    phone.locator(".tool").focus()
    phone.keyboard.press("ArrowRight")
    until(phone, "document.querySelector('.tool').scrollLeft > 0")


def test_no_motion_where_none_is_wanted(server, tabs):
    page = tabs(server.url, reduced_motion="reduce")
    server.answers("word " * 5, pause_s=3600)
    page.say("hello", wait=False)
    page.wait_for_selector(".busy")
    style = "getComputedStyle(document.querySelector('.busy .content'), '::after')"
    assert page.evaluate(f"[{style}.content, {style}.animationName]") == ['"▍"', "none"]


def test_paper_holds_the_whole_chat_and_no_buttons(page, server):
    long_chat(page, server)
    page.emulate_media(media="print")
    assert not page.is_visible("#composer")
    assert not page.is_visible("#sidebar")
    assert not page.is_visible(".actions")
    assert page.evaluate("getComputedStyle(document.getElementById('messages')).overflowY") == "visible"


def test_a_chosen_theme_is_there_before_the_first_paint(tabs, server):
    script = """
      localStorage.setItem("nanochat.theme", '"dark"');
      document.addEventListener("DOMContentLoaded", () => { globalThis.early = document.documentElement.dataset.theme; });
    """
    page = tabs(server.url, script=script, color_scheme="light")
    assert page.evaluate("early") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(25, 24, 22)"


def test_it_is_small(tabs, server):
    page = tabs(server.url)
    sizes = page.evaluate(SIZES_OF_FILES)
    assert 0 < sum(sizes) < 150_000


def test_a_very_long_answer_makes_only_its_end_anew(page, server):
    answer_with(server, *(TextDelta(f"Paragraph {n} with *some* words.\n\n") for n in range(1500)))
    page.evaluate("""() => {
      globalThis.made = 0;
      const count = ({ target, addedNodes }) => { if (target.className === "body") made += addedNodes.length; };
      new MutationObserver((changes) => changes.forEach(count))
        .observe(document.getElementById("log"), { childList: true, subtree: true });
    }""")
    page.say("at length")
    assert page.locator(".assistant .body p").count() == 1500
    assert page.evaluate("made") < 2 * 1500


# ---- accessibility, by axe: every state, light and dark, on a screen and on a phone


def rich(page, server):
    server.backend.events = [
        ToolCall("12*7", "84"),
        TextDelta(RICH),
        Finished(reason="length", prompt_tokens=1, completion_tokens=512),
    ]
    ask(page, "show me")
    page.wait_for_selector(".hljs-keyword")
    page.click('text="Regenerate"')
    page.wait_for_selector("text=2/2")
    page.wait_for_selector("#stop", state="hidden")
    page.click(".receipt summary")


def ask(page, text):
    page.fill("#prompt", text)
    page.click("#send")
    page.wait_for_selector(".receipt, .notice")


def editing(page, server):
    ask(page, "one")
    page.click('text="Edit"')
    page.wait_for_selector(".editor textarea:focus")


def failed(page, server):
    answer_with(server, RuntimeError("broken"))
    ask(page, "one")


def writing(page, server):
    server.answers("word " * 5, pause_s=3600)
    page.fill("#prompt", "hello")
    page.click("#send")
    page.wait_for_selector(".busy")


def settings(page, server):
    page.click("#toggle-settings")
    page.wait_for_selector("#temperature-note >> text=server")
    page.fill("#temperature", "9")
    page.press("#temperature", "Tab")


def sidebar(page, server):
    ask(page, "one")
    if page.is_visible("#toggle-sidebar"):
        page.click("#toggle-sidebar")
    page.click("[aria-label='Rename chat one']")


def deleted(page, server):
    sidebar(page, server)
    page.keyboard.press("Escape")
    page.click("[aria-label='Delete chat one']")
    page.wait_for_selector('text="Undo"')


def tokens(page, server):
    top = [{"token": word, "logprob": logprob} for word, logprob in (("yes", -0.1), ("no", -2.5))]
    content = [{"token": "yes", "logprob": logprob, "top_logprobs": top} for logprob in (-0.1, -0.9, -1.5, -2, -4)]
    page.play(
        {"choices": [{"delta": {"content": "yes" * 5}, "logprobs": {"content": content}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}},
    )
    page.click("#toggle-settings")
    page.check("#show-tokens")
    page.click("#toggle-settings")
    ask(page, "one")
    page.click(".token >> nth=4")


def ribbon(page, server):
    page.reply("**/tokenize", {"tokens": [1, 2], "token_strs": ["<|bos|>", "one"]})
    page.click("#toggle-ribbon")
    page.fill("#prompt", "one")
    page.wait_for_selector(".chip")


def samples(page, server):
    page.fill("#prompt", "one")
    page.click("#ask-many")
    page.wait_for_selector(".cell button")


def card(page, server):
    page.click("#status")
    page.wait_for_selector("dialog")


STATES = (
    lambda page, server: None,
    rich,
    editing,
    failed,
    writing,
    settings,
    sidebar,
    deleted,
    tokens,
    ribbon,
    samples,
    card,
)
SIZES = ({"width": 1100, "height": 720}, {"width": 360, "height": 640})


@pytest.mark.parametrize("size", SIZES, ids=("screen", "phone"))
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__.replace("<lambda>", "empty"))
def test_axe_finds_nothing(server, tabs, state, size):
    page = tabs(server.url, viewport=size)
    state(page, server)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        result = Axe().run(page.page)
        assert result.violations_count == 0, result.generate_report()
