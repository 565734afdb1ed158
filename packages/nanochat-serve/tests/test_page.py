"""The chat page in a real browser: what a person does with it, against a scripted backend."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp import web
from nanochat_serve import ContextLengthError, Finished, ServerSettings, TextDelta, ToolCall, create_app
from nanochat_serve.testing import ScriptedBackend

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
]
DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=1)
HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"> <script>document.title='hacked'</script> "
    "**bold** `a<b` [bad](javascript:document.title='hacked') [good](https://a.test/x)\n\n```\n<b>x</b>\n```"
)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


class Server:
    """The app on a port of its own, on a thread of its own."""

    def __init__(self, backend: ScriptedBackend, settings: ServerSettings | None = None) -> None:
        self.backend = backend
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        async def start() -> web.AppRunner:
            runner = web.AppRunner(create_app(self.backend, self._settings), handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            return runner

        runner = self._loop.run_until_complete(start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(ScriptedBackend())
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server: Server):
    page = open_page(browser, server.url)
    yield page
    page.context.close()


def open_page(browser, url: str):
    context = browser.new_context()
    context.set_default_timeout(0)  # one limit for the whole test will do
    context.set_default_navigation_timeout(0)
    page = context.new_page()
    page.goto(url)
    return page


def say(page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait_for_answer(page) -> None:
    page.wait_for_selector("#stop", state="hidden")


def test_a_question_is_answered_and_found_again_after_a_reload(page):
    say(page, "hello there friend")
    wait_for_answer(page)
    assert page.inner_text(".message.assistant .body") == "hello there friend"
    page.reload()
    assert page.inner_text(".message.assistant .body") == "hello there friend"
    assert page.inner_text("#chats button:first-child") == "hello there friend"
    page.click("#new-chat")
    assert page.locator(".message").count() == 0


def test_stop_ends_the_answer_and_keeps_what_came(page, server):
    server.backend.events = [TextDelta("word ")] * 500 + [DONE]
    server.backend.pause_s = 0.02
    say(page, "go on")
    page.wait_for_selector(".message.assistant .body p")
    page.keyboard.press("Escape")
    wait_for_answer(page)
    kept = page.inner_text(".message.assistant .body")
    assert 0 < kept.count("word") < 500
    while server.backend.num_running:
        page.wait_for_timeout(1)


def test_tool_calls_are_cards_and_go_back_to_the_server(page, server):
    server.backend.events = [ToolCall("12*7", "84"), TextDelta("The answer is 84."), DONE]
    say(page, "12 times 7?")
    wait_for_answer(page)
    assert page.inner_text(".tool .result") == "= 84"
    say(page, "and again?")
    wait_for_answer(page)
    assert server.backend.requests[1].messages[1]["content"][0] == {"type": "python", "text": "12*7"}


def test_edit_and_regenerate(page, server):
    say(page, "first try")
    wait_for_answer(page)
    page.click("text=Regenerate")
    wait_for_answer(page)
    assert len(server.backend.requests) == 2
    page.click("text=Edit")
    assert page.input_value("#prompt") == "first try"
    say(page, "second try")
    wait_for_answer(page)
    assert page.locator(".message").count() == 2
    assert page.inner_text(".message.assistant .body") == "second try"


def test_an_edit_can_be_left_and_an_unanswered_question_gives_way(page, server):
    say(page, "first")
    wait_for_answer(page)
    page.click("text=Edit")
    page.keyboard.press("Escape")
    assert page.input_value("#prompt") == ""
    assert page.locator(".message").count() == 2
    server.backend.events = [TextDelta("never"), DONE]
    server.backend.pause_s = 30
    say(page, "too slow")
    page.wait_for_selector("#stop")
    page.keyboard.press("Escape")
    page.wait_for_selector(".notice")
    server.backend.events, server.backend.pause_s = None, 0
    say(page, "another")
    wait_for_answer(page)
    assert [m["content"] for m in server.backend.requests[-1].messages if m["role"] == "user"] == ["first", "another"]
    assert page.locator(".notice").count() == 0


def test_settings_are_the_servers_until_someone_sets_them(page, server):
    assert not page.locator("#settings").is_visible()
    page.click("#toggle-settings")
    page.wait_for_selector("#top-k[placeholder='50']")
    page.fill("#temperature", "0.1")
    say(page, "hello")
    wait_for_answer(page)
    page.reload()
    page.click("text=Regenerate")
    wait_for_answer(page)
    assert [(r.params.temperature, r.params.top_k) for r in server.backend.requests] == [(0.1, 50), (0.1, 50)]


def test_a_server_that_is_gone_is_said_and_found_again_by_itself(page, server):
    page.route("**/chat/completions", lambda route: route.abort())
    page.route("**/ready", lambda route: route.abort())
    say(page, "hello")
    page.wait_for_selector(".notice")
    assert "cannot be reached" in page.inner_text(".notice")
    page.unroute("**/ready")
    page.unroute("**/chat/completions")
    page.wait_for_selector(".message.assistant >> text=hello")
    assert page.locator(".notice").count() == 0


def test_waiting_can_be_cut_short_or_given_up(page, server):
    server.backend.ready = False
    say(page, "hello")
    page.wait_for_selector("text=still loading")
    page.click("text=Give up")
    assert page.inner_text(".notice span") == "Not answered."
    page.click("text=Try again")
    page.wait_for_selector("text=still loading")
    server.backend.ready = True
    page.click("text=Try again now")
    wait_for_answer(page)
    assert page.inner_text(".message.assistant .body") == "hello"


def test_an_answer_goes_on_while_another_chat_is_open(page, server):
    server.backend.events = [TextDelta("slow ")] * 20 + [DONE]
    server.backend.pause_s = 0.05
    say(page, "first")
    page.wait_for_selector(".message.assistant .body p")
    page.click("#new-chat")
    server.backend.events, server.backend.pause_s = None, 0
    say(page, "second")
    wait_for_answer(page)
    assert page.inner_text(".message.assistant .body") == "second"
    page.wait_for_selector("#chats .dot", state="detached")
    page.click("#chats >> text=first")
    assert page.inner_text(".message.assistant .body").split() == ["slow"] * 20


def test_several_chats_are_kept_and_one_comes_back_after_it_was_deleted(page):
    for text in ("one", "two"):
        page.click("#new-chat")
        say(page, text)
        wait_for_answer(page)
    page.reload()
    assert page.locator("#chats .chat-row button:first-child").all_inner_texts() == ["two", "one"]
    page.click("[aria-label='Delete chat one']", force=True)
    page.click("text=Undo")
    assert page.inner_text(".message.user .body") == "one"
    page.click("[aria-label='Delete chat one']", force=True)
    page.reload()
    assert page.locator("#chats .chat-row").count() == 1


def test_it_can_be_used_with_the_keyboard_alone(page, server):
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    assert page.inner_text(".message.user .body") == "first\nline"
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("ArrowUp")
    assert page.input_value("#prompt") == "first\nline"
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    assert page.locator(".message").count() == 0
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "toggle-theme":
            break
    before = page.get_attribute("html", "data-theme")
    page.keyboard.press("Enter")
    assert {before, page.get_attribute("html", "data-theme")} == {"light", "dark"}


def test_every_control_has_a_name_and_the_answer_is_announced_once_whole(page, server):
    server.backend.events = [ToolCall("1+1", "2"), TextDelta("```\nx\n```")] + [TextDelta("more ")] * 20 + [DONE]
    server.backend.pause_s = 0.02
    page.click("#toggle-settings")
    say(page, "hello")
    page.wait_for_selector(".message.busy")
    assert page.get_attribute("#messages", "aria-busy") == "true"
    wait_for_answer(page)
    assert (page.get_attribute("#messages", "aria-busy"), page.get_attribute("#messages", "role")) == ("false", "log")
    nameless = """[...document.querySelectorAll("button, input, textarea")].filter((control) => control.offsetParent
        && !(control.ariaLabel || control.labels?.length || control.textContent.trim()))"""
    assert page.evaluate(f"{nameless}.length") == 0
    assert page.locator("[aria-label='Calculator'] >> text='= 2'").count() == 1


def test_a_missing_key_opens_the_settings(browser):
    running = Server(ScriptedBackend(), ServerSettings(api_keys=("sesame",)))
    page = open_page(browser, running.url)
    say(page, "hello")
    page.wait_for_selector("#settings")
    assert "API key" in page.inner_text(".notice")
    page.fill("#api-key", "sesame")
    page.click("text=Try again")
    wait_for_answer(page)
    assert page.inner_text(".message.assistant .body") == "hello"
    page.context.close()
    running.close()


def test_the_policy_holds_and_nothing_is_fetched_from_elsewhere(page, server):
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.reload()
    say(page, HOSTILE)
    wait_for_answer(page)
    assert all(url.startswith((server.url, "data:")) for url in asked)
    assert not complaints


def test_lists_code_and_the_copy_button(page, server):
    server.backend.events = [TextDelta("- one\n- *two*\n\n3. three\n\n```python\nprint(1)\n```\nend"), DONE]
    say(page, "hello")
    wait_for_answer(page)
    assert page.locator("#messages ul li").all_inner_texts() == ["one", "two"]
    assert page.get_attribute("#messages ol", "start") == "3"
    assert page.inner_text(".code pre") == "print(1)"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".code-head button")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"


def test_errors_are_shown_and_recovered_from(page, server):
    server.backend.events = [RuntimeError("broken")]
    say(page, "hello")
    page.wait_for_selector(".notice")
    server.backend.events = None
    page.click("text=Try again")
    wait_for_answer(page)
    assert page.inner_text(".message.assistant .body") == "hello"
    assert page.locator(".notice").count() == 0


def test_a_full_context_offers_to_drop_the_oldest_turns(page, server):
    for text in ("one", "two"):
        say(page, text)
        wait_for_answer(page)
    server.backend.events = [ContextLengthError(300, 256)]
    say(page, "three")
    page.wait_for_selector(".notice")
    server.backend.events = None
    page.click("text=Drop the oldest turns")
    wait_for_answer(page)
    assert server.backend.requests[-1].messages[0]["content"] == "two"


def test_hostile_text_stays_text(page, server):
    server.backend.events = [TextDelta(HOSTILE), DONE]
    say(page, HOSTILE)
    wait_for_answer(page)
    assert page.title().endswith(" - nanochat")
    assert page.eval_on_selector_all("#messages a", "links => links.map(link => link.href)") == ["https://a.test/x"]
    assert page.locator("#messages img, #messages script, #messages b").count() == 0
    assert page.inner_text(".message.assistant strong") == "bold"
    assert page.inner_text(".message.assistant pre").strip() == "<b>x</b>"


def test_a_phone_has_no_sideways_scrolling_and_a_menu(page):
    page.set_viewport_size({"width": 360, "height": 640})
    say(page, "averylongwordwithoutanyspaces" * 8)
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("#toggle-sidebar")
    assert page.locator("#new-chat").is_visible()


DRIVE_BY = """async (url) => {
  const body = JSON.stringify({ messages: [{ role: "user", content: "x" }], prompt: "x" });
  for (const path of ["chat/completions", "v1/chat/completions", "v1/completions"]) {
    for (const type of ["text/plain", "application/json"]) {
      await fetch(url + path, { method: "POST", mode: "no-cors", headers: { "Content-Type": type }, body }).catch(() => {});
      await fetch(url + path, { method: "POST", headers: { "Content-Type": type }, body }).catch(() => {});
    }
  }
}"""


class ForeignPage(BaseHTTPRequestHandler):
    """One without our page's Content-Security-Policy, which would keep it from trying."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(
            b'<form method=post enctype=text/plain><input name=\'{"prompt":"x","a":"\' value=\'"}\'></form>'
        )

    def log_message(self, *_: object) -> None:
        pass


def test_a_foreign_page_gets_no_answer(server, browser):
    """By fetch, by a form without scripts, and under a name of its own that leads to this machine."""
    foreign = ThreadingHTTPServer(("127.0.0.1", 0), ForeignPage)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{foreign.server_port}/")
        page.evaluate(DRIVE_BY, server.url)
        assert server.backend.requests == []
        with page.expect_navigation():
            page.evaluate(
                "(url) => { document.forms[0].action = url; document.forms[0].submit(); }",
                server.url + "v1/completions",
            )
        assert "application/json" in page.content()  # what the server wants instead
        assert server.backend.requests == []
        port = server.url.rstrip("/").rpartition(":")[2]
        assert page.goto(f"http://evil.example:{port}/").status == 403
        page.goto(server.url)
        page.evaluate(DRIVE_BY, server.url)  # the same from its own page
        assert len(server.backend.requests) == 3  # what is no JSON is refused there too, and no-cors cannot send JSON
    finally:
        page.close()
        foreign.shutdown()
