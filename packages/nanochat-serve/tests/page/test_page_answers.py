"""Asking and being answered: streaming, stopping, how an answer ended, errors and how the page gets over them."""

import pytest
from nanochat_serve import ContextLengthError, Finished, TextDelta, ToolCall

DONE = Finished(reason="stop", prompt_tokens=1, completion_tokens=1)


def test_a_question_is_answered_and_found_again_after_a_reload(page):
    page.say("hello there friend")
    assert page.said == ["hello there friend", "hello there friend"]
    page.again()
    assert page.said == ["hello there friend", "hello there friend"]
    assert page.inner_text("#chats a") == "hello there friend"
    page.click("#new-chat")
    assert page.said == []
    assert not page.faults


def test_stop_ends_the_answer_and_keeps_what_came(page, server):
    server.answers("word " * 500, pause_s=0.02)
    page.say("go on", wait=False)
    page.wait_for_selector(".message.assistant .body p")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    assert 0 < page.said[1].count("word") < 500
    assert page.inner_text(".end") == "Stopped."
    while server.backend.num_running:
        page.wait_for_timeout(1)


def test_tool_calls_are_cards_and_go_back_to_the_server(page, server):
    server.backend.events = [ToolCall("12*7", "84"), TextDelta("The answer is 84."), DONE]
    page.say("12 times 7?")
    assert page.inner_text(".tool .result") == "= 84"
    assert page.get_attribute(".tool", "aria-label") == "Calculator: 12*7 = 84"
    page.say("and again?")
    assert server.backend.requests[1].messages[1]["content"][0] == {"type": "python", "text": "12*7"}


@pytest.mark.parametrize(
    ("reason", "tokens", "end"),
    [("length", 512, "the most tokens that were allowed"), ("length", 7, "the model's context is full")],
)
def test_an_answer_that_was_cut_off_says_why_and_can_be_continued(page, server, reason, tokens, end):
    server.answers("It goes on", reason=reason, tokens=tokens)
    page.say("tell me")
    assert end in page.inner_text(".end")
    asked = page.play("and on", {"choices": [], "usage": {"completion_tokens": 2}})
    page.click('text="Continue"')
    page.wait_for_selector("text=and on")
    assert page.said == ["tell me", "It goes on and on"]
    assert asked[0]["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "It goes on "}]}
    assert page.locator(".end").count() == 0
    page.again()
    assert page.said == ["tell me", "It goes on and on"]


def test_a_call_without_room_for_its_result_and_an_answer_without_a_word_say_so(page, server):
    server.backend.events = [ToolCall("12*7", ""), Finished(reason="length", prompt_tokens=250, completion_tokens=6)]
    page.say("12 times 7?")
    assert page.inner_text(".tool .result") == "cut off before its result"
    assert "context is full" in page.inner_text(".end")
    server.backend.events = [Finished(reason="stop", prompt_tokens=1, completion_tokens=0)]
    page.say("and now?")
    assert page.said[3] == "The model ended its answer without a word."
    assert page.is_enabled("[aria-label='Regenerate answer'] >> nth=1")
    assert page.locator(".message >> nth=3 >> text=Copy").count() == 0


def test_a_receipt_tells_what_an_answer_took_and_asks_the_same_again(page, server):
    server.answers("forty two", tokens=2, prompt=11)
    page.say("what is it?")
    assert page.inner_text(".receipt summary").startswith("2 tokens")
    page.click(".receipt summary")
    facts = page.inner_text(".receipt dl")
    seed = server.backend.requests[0].params.seed
    assert all(str(fact) in facts for fact in ("ended by itself", 11, "First token after", "temperature", seed))
    page.click("text=Same again")
    page.wait_for_selector("text=2/2")
    page.wait_for_selector("#stop", state="hidden")
    page.click('text="Regenerate"')
    page.wait_for_selector("text=3/3")
    page.wait_for_selector("#stop", state="hidden")
    seeds = [request.params.seed for request in server.backend.requests]
    assert seeds[:2] == [seed, seed]
    assert seeds[2] != seed


def test_a_server_that_is_gone_is_said_and_found_again_by_itself(page):
    page.route("**/chat/completions", lambda route: route.abort())
    page.route("**/ready", lambda route: route.abort())
    page.say("hello", wait=False)
    page.wait_for_selector(".notice")
    assert "cannot be reached" in page.inner_text(".notice")
    page.unroute("**/ready")
    page.unroute("**/chat/completions")
    page.wait_for_selector(".message.assistant >> text=hello")
    assert page.locator(".notice").count() == 0


def test_waiting_can_be_cut_short_or_given_up(page, server):
    server.backend.ready = False
    page.say("hello", wait=False)
    page.wait_for_selector("text=still loading")
    page.click("text=Give up")
    assert page.inner_text(".notice span") == "Not answered."
    page.click("text=Try again")
    page.wait_for_selector("text=still loading")
    server.backend.ready = True
    page.click("text=Try again now")
    page.wait_for_selector(".message.assistant >> text=hello")


def test_an_answer_that_breaks_off_is_kept_and_can_be_continued_or_begun_anew(page):
    page.play("the first half ", {"error": {"message": "the model failed to answer", "type": "backend_error"}})
    page.say("tell me", wait=False)
    page.wait_for_selector(".notice >> text=failed to answer")
    assert page.said == ["tell me", "the first half"]
    asked = page.play("and the second")
    page.click(".notice >> text=Continue")
    page.wait_for_selector("text=and the second")
    assert page.said == ["tell me", "the first half and the second"]
    assert asked[0]["messages"][-1]["role"] == "assistant"


def test_a_reload_in_mid_answer_keeps_the_half_and_calls_it_one(page, server):
    server.answers("word " * 500, pause_s=0.02)
    page.say("go on", wait=False)
    page.wait_for_selector("text=word word word")
    page.again()
    assert page.said[1].startswith("word word")
    assert page.inner_text(".end") == "Interrupted: this is not the whole answer."
    assert page.is_visible('text="Continue"')


def test_a_reload_before_the_first_word_leaves_a_way_on(page, server):
    server.answers("at last", pause_s=3600)
    page.say("go on", wait=False)
    page.wait_for_selector("#stop")
    page.again()
    server.answers("at last")
    page.click("text=Answer it")
    page.wait_for_selector(".assistant >> text=at last")
    assert page.said == ["go on", "at last"]


def test_a_bug_of_the_page_is_not_called_the_servers_and_not_tried_again(page, server):
    page.evaluate("() => { globalThis.TextDecoderStream = function () { throw new RangeError('planted') } }")
    page.say("hello", wait=False)
    page.wait_for_selector(".notice >> text=The page failed, not the server: planted")
    assert not page.is_visible("text=Trying again")
    assert len(server.backend.requests) == 1


def test_errors_are_shown_and_recovered_from(page, server):
    server.backend.events = [RuntimeError("broken")]
    page.say("hello", wait=False)
    page.wait_for_selector(".notice")
    server.backend.events = None
    page.click("text=Try again")
    page.wait_for_selector(".message.assistant >> text=hello")
    assert page.locator(".notice").count() == 0


def test_a_missing_key_opens_the_settings(serve, tabs):
    page = tabs(serve(api_keys=("sesame",)).url)
    page.wait_for_selector("#status >> text=needs a key")
    page.say("hello", wait=False)
    page.wait_for_selector("#settings")
    assert "API key" in page.inner_text(".notice")
    assert page.evaluate("document.activeElement.id") == "api-key"
    page.fill("#api-key", "sesame")
    page.click("text=Try again")
    page.wait_for_selector(".message.assistant >> text=hello")


def test_more_chats_than_the_browser_has_connections_wait_and_say_so(page, server):
    server.answers("word " * 500, pause_s=3600)
    for number in range(5):
        page.click("#new-chat")
        page.say(f"chat {number}", wait=False)
        page.wait_for_selector("#stop")
    page.wait_for_selector("text=Waiting for one of your other answers to end.")
    assert len(server.backend.requests) == 4
    server.backend.events, server.backend.pause_s = None, 0
    page.click("#chats >> text=chat 0")
    page.click("#stop")
    page.click("#chats >> text=chat 4")
    page.wait_for_selector(".message.assistant .body >> text=chat 4")


# ---- the context


class Small:
    """A context of 100 tokens, a token a character."""

    def __init__(self, backend):
        self.asked = []
        backend.stream = self.stream

    async def stream(self, request):
        self.asked.append([message["content"] for message in request.messages])
        num_tokens = sum(len(str(message["content"])) for message in request.messages)
        if num_tokens > 100:
            raise ContextLengthError(num_tokens, 100)
        yield TextDelta(str(request.messages[-1]["content"]).upper())
        yield Finished(reason="stop", prompt_tokens=num_tokens, completion_tokens=20)


def test_a_full_context_slides_by_itself_and_nothing_is_lost(page, server):
    model = Small(server.backend)
    questions = [f"{word} {'x' * 20}" for word in ("one", "two", "three", "four", "five", "six")]
    for question in questions:
        page.say(question)
    assert page.said[::2] == questions
    assert page.said[1::2] == [question.upper() for question in questions]
    assert page.locator(".notice").count() == 0
    assert model.asked[-1][0] != questions[0]
    outside = page.locator(".message.outside").count()
    assert 0 < outside < 12
    assert "earlier turn" in page.inner_text("#ruler-text")
    assert "/100 tokens" in page.inner_text("#ruler-text")
    page.again()
    assert page.said[::2] == questions
    assert page.locator(".message.outside").count() == outside


def test_a_question_that_is_too_long_alone_costs_no_turn_and_can_be_shortened(page, server):
    Small(server.backend)
    page.say("one")
    page.say("x" * 150, wait=False)
    page.wait_for_selector(".notice >> text=This question is too long")
    assert "150 tokens, and its context holds 100" in page.inner_text(".notice")
    assert page.said[:2] == ["one", "ONE"]
    page.click("text=Edit the question")
    page.fill(".editor textarea", "short")
    page.click(".editor >> text=Save")
    page.wait_for_selector(".assistant >> text=SHORT")
    assert page.said == ["one", "ONE", "short", "SHORT"]


def test_what_is_too_long_to_send_is_said_before_and_a_long_answer_does_not_end_the_chat(page, server):
    server.answers("word " * 2000)
    page.say("go on")
    server.backend.events = None
    page.fill("#prompt", "x" * 9000)
    page.press("#prompt", "Enter")
    assert page.inner_text("#too-long") == "9,000 of at most 8,000 characters: shorten it to send it."
    assert len(page.input_value("#prompt")) == 9000
    page.say("and now?")
    assert page.said[3] == "and now?"
    assert len(server.backend.requests[1].messages[1]["content"]) == 8000


def test_who_is_quicker_than_the_browsers_store_loses_nothing(tabs, server):
    script = """
      const open = IDBFactory.prototype.open;
      IDBFactory.prototype.open = function (...args) {
        const request = { };
        globalThis.goOn = () => {
          const real = open.apply(indexedDB, args);
          real.onupgradeneeded = () => { request.result = real.result; request.onupgradeneeded(); };
          real.onsuccess = () => { request.result = real.result; request.onsuccess(); };
        };
        return request;
      };
    """
    page = tabs(server.url, script=script, wait=False)
    page.wait_for_selector("#prompt")
    page.fill("#prompt", "hello")
    page.click("#send")
    page.wait_for_selector(".message.user >> text=hello")
    page.evaluate("goOn()")
    page.wait_for_selector(".receipt")
    page.wait_for_url("**/#*")
    page.reload()
    while not page.evaluate("Boolean(globalThis.goOn)"):
        page.wait_for_timeout(5)
    page.evaluate("goOn()")
    page.wait_for_selector(".message.assistant >> text=hello")
    assert page.inner_text("#chats").count("hello") == 1
