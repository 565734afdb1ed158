"""Chats in the browser: branches, tabs beside each other, what is damaged or full, names, files, addresses, settings."""

import json

import pytest
from playwright.sync_api import expect

FULL = """
const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (...args) {
  if (globalThis.full) throw new DOMException("no room", "QuotaExceededError");
  return put.apply(this, args);
};
"""
OLD = """
localStorage.setItem("nanochat.chat.1", JSON.stringify({ id: "1", title: "of old", time: 1, messages: [
  { role: "user", content: "of old" }, { role: "assistant", content: [{ type: "text", text: "and kept" }] }] }));
localStorage.setItem("nanochat.chat.2", "{damaged");
"""
WRITE = """async ([store, record]) => {
  const database = await new Promise((done) => {
    indexedDB.open("nanochat").onsuccess = (event) => done(event.target.result);
  });
  const change = database.transaction(store, "readwrite");
  change.objectStore(store).put(record);
  await new Promise((done) => { change.oncomplete = done; });
}"""


def titles(page):
    return page.locator("#chats a").all_inner_texts()


def exported(page, button="#export"):
    with page.expect_download() as started:
        page.click(button)
    return json.loads(started.value.path().read_text(encoding="utf-8"))


# ---- branches


def test_edit_and_regenerate_make_branches_and_destroy_nothing(page, server):
    page.say("first")
    page.say("second")
    page.click("[aria-label='Edit question'] >> nth=0")
    page.fill(".editor textarea", "instead")
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant >> text=instead")
    assert page.said == ["instead", "instead"]
    page.click("[aria-label='Previous version'] >> nth=0")
    assert page.said == ["first", "first", "second", "second"]
    assert page.inner_text(".branches span") == "1/2"
    page.again()
    assert page.said == ["first", "first", "second", "second"]
    page.click("[aria-label='Regenerate answer'] >> nth=0")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector(".assistant .branches >> text=2/2")
    page.click(".assistant [aria-label='Previous version']")
    assert page.said == ["first", "first", "second", "second"]
    assert len(server.backend.requests) == 4


def test_an_edit_without_a_change_asks_nothing_and_an_unfinished_one_is_found_again(page, server):
    page.say("first")
    page.fill("#prompt", "a draft")
    page.click('text="Edit"')
    page.press(".editor textarea:focus", "Enter")
    page.wait_for_selector(".editor", state="detached")
    assert len(server.backend.requests) == 1
    page.click('text="Edit"')
    page.wait_for_selector(".editor textarea:focus")
    page.fill(".editor textarea", "half an id")
    page.keyboard.press("Escape")
    assert page.said == ["first", "first"]
    assert page.input_value("#prompt") == "a draft"
    page.again()
    assert page.input_value("#prompt") == "a draft"
    page.click('text="Edit"')
    assert page.input_value(".editor textarea") == "half an id"


def test_a_question_that_was_never_answered_becomes_another_branch(page, server):
    page.say("first")
    server.answers("never", pause_s=3600)
    page.say("too slow", wait=False)
    page.wait_for_selector("#stop")
    page.keyboard.press("Escape")
    page.wait_for_selector(".notice")
    server.backend.events, server.backend.pause_s = None, 0
    page.say("another")
    assert [m["content"] for m in server.backend.requests[-1].messages if m["role"] == "user"] == ["first", "another"]
    page.click("[aria-label='Previous version']")
    assert page.said[2] == "too slow"
    assert page.is_visible("text=Answer it")


def test_an_answer_goes_on_while_another_chat_is_open(page, server):
    server.answers(" ".join(["slow"] * 20), pause_s=0.05)
    page.say("first", wait=False)
    page.wait_for_selector(".message.assistant .body p")
    page.click("#new-chat")
    server.backend.events, server.backend.pause_s = None, 0
    page.say("second")
    assert page.said[1] == "second"
    page.wait_for_selector("#chats .dot", state="detached")
    page.click("#chats >> text=first")
    expect(page.locator(".message.assistant .body")).to_have_text(" ".join(["slow"] * 20))


# ---- tabs, and what a store can do to one


def test_two_tabs_keep_what_both_write(page, tabs, server):
    page.say("one")
    other = tabs(page.url, beside=page)
    assert other.said == ["one", "one"]
    page.say("from the first tab")
    other.wait_for_selector("text=from the first tab >> nth=1")
    other.say("from the second tab")
    page.wait_for_selector("text=from the second tab >> nth=1")
    page.again()
    assert page.said == other.said
    assert page.said[2::2] == ["from the first tab", "from the second tab"]
    other.click("#new-chat")
    other.say("a chat of its own")
    page.wait_for_selector("#chats >> text=a chat of its own")


def test_an_answer_can_be_watched_from_another_tab(page, tabs, server):
    server.answers("word " * 60, pause_s=0.05)
    page.say("go on", wait=False)
    page.wait_for_selector("text=word word")
    page.wait_for_url("**/#*")
    other = tabs(page.url, beside=page)
    other.wait_for_selector("text=Being written in another tab.")
    other.wait_for_selector(".receipt")
    assert other.said[1].split() == ["word"] * 60


def test_a_chat_deleted_in_one_tab_does_not_return_from_another(page, tabs):
    page.say("one")
    other = tabs(page.url, beside=page)
    page.click("[aria-label='Delete chat one']")
    other.wait_for_selector("#chats a", state="detached")
    assert other.said == []
    other.say("two")
    page.wait_for_selector("#chats >> text=two")
    page.again()
    assert titles(page) == ["two"]


def test_more_than_200_chats_are_kept(page, tmp_path):
    chats = [
        {"id": f"c{n}", "title": f"chat {n}", "time": n, "leaf": None, "settings": {}, "system": "", "messages": []}
        for n in range(230)
    ]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps({"format": "nanochat-chats", "version": 1, "chats": chats}))
    page.set_input_files("#import-file", file)
    page.wait_for_selector("text=230 chats imported")
    page.say("one more")
    page.again()
    assert len(titles(page)) == 231


@pytest.mark.parametrize(
    "record", [{"id": "x", "title": None}, {"id": "x"}, {"id": "x", "title": "x", "time": "never"}]
)
def test_a_damaged_chat_is_left_out_and_harms_no_other(page, record):
    page.say("sound")
    page.evaluate(WRITE, ["chats", record])
    page.evaluate(WRITE, ["messages", {"id": "m", "chat": page.url.partition("#")[2], "role": "user", "content": None}])
    page.again()
    assert (titles(page), page.said) == (["sound"], ["sound", "sound"])
    assert not page.faults


def test_chats_of_the_first_edition_are_taken_over(tabs, server):
    page = tabs(server.url, script=OLD)
    page.click("#chats >> text=of old")
    page.wait_for_selector("text=and kept")
    assert titles(page) == ["of old"]


def test_a_full_store_says_so_and_offers_an_export_of_everything(tabs, server):
    page = tabs(server.url, script=FULL)
    page.say("kept")
    page.evaluate("globalThis.full = true")
    page.say("not kept")
    assert "storage is full" in page.inner_text("#toast")
    assert page.said == ["kept", "kept", "not kept", "not kept"]
    [chat] = exported(page, "text=Export all chats")["chats"]
    assert len(chat["messages"]) == 4


def test_without_any_store_the_chat_works_and_says_that_nothing_is_kept(tabs, server):
    page = tabs(server.url, script="indexedDB.open = () => { throw new Error('forbidden') }")
    page.say("hello")
    assert page.said == ["hello", "hello"]
    assert "keeps no chats" in page.inner_text("#toast")


# ---- the list


def test_a_chat_is_renamed_found_deleted_and_brought_back(page):
    for text in ("about cats", "about dogs"):
        page.click("#new-chat")
        page.say(text)
    page.click("[aria-label='Rename chat about cats']", force=True)
    page.keyboard.type("Pets")
    page.keyboard.press("Enter")
    assert titles(page) == ["about dogs", "Pets"]
    page.fill("#search", "CATS")
    expect(page.locator("#chats a")).to_have_text(["Pets"])
    page.fill("#search", "horses")
    page.wait_for_selector("text=Nothing found.")
    page.fill("#search", "")
    expect(page.locator("#chats a")).to_have_count(2)
    page.click("[aria-label='Delete chat Pets']", force=True)
    page.click('text="Undo"')
    page.wait_for_selector(".message >> text=about cats")
    page.again()
    assert titles(page) == ["about dogs", "Pets"]


def test_what_was_exported_can_be_imported_elsewhere(page, tabs, server, tmp_path):
    page.say("first")
    page.click('text="Regenerate"')
    page.wait_for_selector("text=2/2")
    data = exported(page)
    data["chats"].append({"damaged": True})
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(data))
    other = tabs(server.url)
    for _ in range(2):
        other.set_input_files("#import-file", file)
        other.wait_for_selector("text=imported")
    assert "1 were here already, 1 damaged records left out" in other.inner_text("#toast")
    other.click("#chats >> text=first")
    assert other.said == ["first", "first"]
    assert other.inner_text(".branches span") == "2/2"
    file.write_text("[]")
    other.set_input_files("#import-file", file)
    other.wait_for_selector("text=That file cannot be imported")


def test_every_chat_has_an_address(page):
    page.say("one")
    page.wait_for_url("**/#*")
    address = page.url
    page.click("#new-chat")
    page.say("two")
    page.go_back()
    page.wait_for_selector(".message >> text=one")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".message >> text=one")
    page.goto(address + "x")
    page.wait_for_selector("text=This browser has no chat of that address.")


# ---- settings


def test_settings_belong_to_a_chat_and_a_new_one_begins_with_the_last(page, server):
    page.click("#toggle-settings")
    page.fill("#temperature", "0.1")
    page.fill("#top-p", "0.5")
    page.fill("#seed", "7")
    page.fill("#system", "Be brief.")
    page.say("one")
    page.click("#new-chat")
    assert page.input_value("#temperature") == "0.1"
    assert page.input_value("#system") == ""
    page.fill("#temperature", "1.5")
    page.say("two")
    page.again()
    page.click("#chats >> text=one")
    page.click("#toggle-settings")
    assert (page.input_value("#temperature"), page.input_value("#system")) == ("0.1", "Be brief.")
    page.say("three")
    asked = [(r.params.temperature, r.params.top_k, r.params.top_p, r.params.seed) for r in server.backend.requests]
    assert asked == [(0.1, 50, 0.5, 7), (1.5, 50, 0.5, 7), (0.1, 50, 0.5, 7)]
    assert server.backend.requests[2].messages[0] == {"role": "system", "content": "Be brief."}


def test_what_the_server_takes_and_what_was_set_look_different_and_a_wrong_value_is_refused(page, server):
    page.click("#toggle-settings")
    page.wait_for_selector("#temperature-note >> text=server's: 0.8")
    assert page.get_attribute("#temperature", "class") in (None, "")
    page.fill("#temperature", "9")
    page.press("#temperature", "Tab")
    assert page.inner_text("#temperature-note") == "Temperature must be between 0 and 2; not used"
    assert page.get_attribute("#temperature", "aria-invalid") == "true"
    page.fill("#top-k", "5")
    page.press("#top-k", "Tab")
    assert page.get_attribute("#top-k", "class") == "set"
    page.say("hello")
    assert (server.backend.requests[0].params.temperature, server.backend.requests[0].params.top_k) == (0.8, 5)
    page.click("text=Reset")
    assert page.input_value("#top-k") == ""


def test_fields_are_those_that_the_server_allows(tabs, server):
    def allow(route):
        document = route.fetch().json()
        body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        fields = body["schema"]["properties"]
        del fields["repetition_penalty"]
        fields["min_p"]["maximum"] = 0.5
        route.fulfill(json=document)

    page = tabs(server.url)
    page.wait_for_selector("#repetition-penalty", state="attached")
    page.context.route("**/openapi.json", allow)
    other = tabs(server.url, beside=page)
    other.wait_for_selector("#min-p", state="attached")
    assert other.get_attribute("#min-p", "max") == "0.5"
    assert other.locator("#repetition-penalty").count() == 0


def test_status_and_model_follow_the_server(page, server):
    page.wait_for_selector("#status >> text=ready")
    server.backend.ready = False
    page.wait_for_selector("#status >> text=loading")
    page.route("**/stats", lambda route: route.fulfill(json={"model": "another", "available_workers": 1, "waiting": 3}))
    page.wait_for_selector("#status >> text=another")
    assert "3 waiting" in page.inner_text("#status")
    page.unroute("**/stats")
    page.route("**/stats", lambda route: route.abort())
    page.wait_for_selector("#status >> text=not reachable")
