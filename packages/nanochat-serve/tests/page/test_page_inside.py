"""A look inside the model: tokens by probability, the tokenizer, many samples, models side by side, the card, corrections."""

import json

from nanochat_serve import collect_corrections, describe_model

CONTENT = [
    {"token": "The ", "logprob": -0.01, "top_logprobs": [{"token": "The ", "logprob": -0.01}]},
    {
        "token": "cat",
        "logprob": -1.2,
        "top_logprobs": [{"token": "dog", "logprob": -0.5}, {"token": "cat", "logprob": -1.2}],
    },
    {"token": " sat", "logprob": -3.0, "top_logprobs": [{"token": " sat", "logprob": -3.0}]},
]
TEXT = "The cat sat"
CHUNKS = (
    *({"choices": [{"delta": {"content": token["token"]}, "logprobs": {"content": [token]}}]} for token in CONTENT),
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}, "timings": {"predicted_per_second": 123.4}},
)


def test_tokens_show_their_probability_and_another_choice_continues_as_a_branch(page):
    asked = page.play(*CHUNKS)
    page.click("#toggle-settings")
    page.check("#show-tokens")
    page.say("what happened?")
    assert (asked[0]["logprobs"], asked[0]["top_logprobs"]) == (True, 5)
    assert page.inner_text(".receipt summary").startswith("3 tokens · 123 tokens/s")
    tokens = page.locator(".token")
    assert tokens.all_inner_texts() == ["The ", "cat", " sat"]
    assert [token.get_attribute("class") for token in tokens.all()] == ["token p0", "token p2", "token p4"]
    tokens.nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".choices >> text=61%")
    assert page.is_disabled(".choices button >> text=cat")
    asked = page.play(" barked")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=2/2")
    page.wait_for_selector("#stop", state="hidden")
    assert asked[0]["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "The dog"}]}
    page.uncheck("#show-tokens")
    assert page.said == ["what happened?", "The dog barked"]
    page.click("[aria-label='Previous version']")
    assert page.said == ["what happened?", TEXT]


def test_tokens_of_what_is_typed_and_of_all_that_the_model_sees(page):
    asked = page.reply("**/tokenize", {"tokens": [1, 77, 2], "token_strs": ["<|bos|>", "hi", "\n"]})
    page.fill("#prompt", "hi\n")
    page.click("#toggle-ribbon")
    page.wait_for_selector("#ribbon .chip")
    assert page.locator("#ribbon .chip").all_inner_texts() == ["<|bos|>\n1", "hi\n77", "↵\n2"]
    assert asked[0]["prompt"] == "hi\n"
    page.click("text=What it sees")
    page.wait_for_selector("dialog .special")
    assert asked[-1]["messages"] == [{"role": "user", "content": "hi"}]
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_a_server_without_a_tokenizer_is_said(page):
    page.route("**/tokenize", lambda route: route.fulfill(status=404, json={"error": {"message": "not here"}}))
    page.click("#toggle-ribbon")
    page.fill("#prompt", "hi")
    page.wait_for_selector("#ribbon >> text=The server does not show its tokens: not here")


def test_a_question_is_asked_eight_times_and_the_answers_are_counted(page, server):
    server.answers("forty two")
    page.fill("#prompt", "what is it?")
    page.click("text=Ask 8 times")
    page.wait_for_selector(".cell button >> nth=7")
    assert page.inner_text("dialog .note") == "1 different answers in 8: “forty two” 8 times."
    assert [request.params.n for request in server.backend.requests] == [8]
    page.click(".cell button >> nth=3")
    page.wait_for_selector(".message.assistant")
    assert page.said == ["what is it?", "forty two"]
    page.again()
    assert page.said == ["what is it?", "forty two"]


def test_several_models_can_be_chosen_and_compared_on_one_question_and_seed(tabs, server):
    def several(route):
        route.fulfill(json={"data": [{"id": name, "max_model_len": 256} for name in ("base", "sft", "nanochat")]})

    page = tabs(server.url)
    page.context.route("**/v1/models", several)
    page.again()
    page.wait_for_selector("#compare")
    assert "/256 tokens" in page.inner_text("#ruler-text")
    asked = page.reply("**/v1/chat/completions", {"choices": [{"message": {"content": "an answer"}}]})
    page.fill("#prompt", "who are you?")
    page.click("#compare")
    page.wait_for_selector(".cell button >> nth=2")
    assert sorted((body["model"], body["seed"]) for body in asked) == [("base", 1), ("nanochat", 1), ("sft", 1)]
    page.locator("dialog input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("dialog output") == "sft"
    assert page.inner_text(".cell.chosen strong") == "sft"
    page.keyboard.press("Escape")
    page.unroute("**/v1/chat/completions")
    asked = page.play("hi")
    page.click("#toggle-settings")
    page.select_option("#model-choice", "base")
    page.say("who are you?")
    assert asked[0]["model"] == "base"


def test_the_card_tells_what_the_model_is_and_asks_a_mistake_again(serve, tabs):
    def put_card(app):
        card = {
            "facts": {"Stage": "sft", "Step": 400},
            "loss": [[0, 9.0], [200, 4.0], [400, 3.5]],
            "skills": [
                {"name": "sums", "score": 0.75, "mistakes": [{"question": "2+2?", "answer": "5", "expected": "4"}]}
            ],
            "samples": ["Once upon a time"],
            "suggestions": ["Something it knows"],
        }
        describe_model(app, card)

    page = tabs(serve(put_card).url)
    page.wait_for_selector(".ideas >> text=Something it knows")
    page.click("#status")
    text = page.inner_text("dialog")
    assert all(
        part in text for part in ("Stage", "400", "sums", "75%", "Once upon a time", "From 9.00 at step 0 to 3.50")
    )
    assert page.locator("dialog polyline").get_attribute("points") == "0.0,0.0 200.0,90.9 400.0,100.0"
    page.click("dialog summary")
    page.click("text=2+2?")
    page.wait_for_selector(".receipt")
    assert page.said == ["2+2?", "2+2?"]


def test_corrections_and_praise_become_a_file_to_train_on(serve, tabs, tmp_path):
    file = tmp_path / "my-chats.jsonl"

    def collect(app):
        collect_corrections(app, file, "chat-sft --mixture my-chats.jsonl:10")

    server = serve(collect)
    page = tabs(server.url)
    page.wait_for_selector("#status")
    server.answers("It is 41.")
    page.say("What is 6 times 7?")
    page.click("[aria-label='Correct this answer']")
    page.fill(".editor textarea", "It is 42.")
    page.click(".editor >> text=Save")
    page.wait_for_selector(
        "text=Kept as conversation 1 of my-chats.jsonl. Train on it with: chat-sft --mixture my-chats.jsonl:10"
    )
    assert page.said == ["What is 6 times 7?", "It is 42."]
    assert page.inner_text(".assistant .branches span") == "2/2"
    page.click("[aria-label='Previous version']")
    page.click("[aria-label='A good answer: keep it for training']")
    page.wait_for_selector("text=Kept as conversation 2")
    assert page.get_attribute("[aria-label^='A good answer']", "aria-pressed") == "true"
    question = {"role": "user", "content": "What is 6 times 7?"}
    assert [json.loads(line)["messages"] for line in file.read_text().splitlines()] == [
        [question, {"role": "assistant", "content": "It is 42."}],
        [question, {"role": "assistant", "content": "It is 41. "}],
    ]


def test_without_the_flag_nothing_is_collected(page):
    page.say("hello")
    assert page.locator("[aria-label='Correct this answer']").count() == 0


def test_another_choice_within_a_call_of_the_tool_keeps_it_a_call(page):
    texts = ("Let me see: ", "<|python_start|>", "12", "*7", "<|python_end|>", "!")
    top = [{"token": "+7", "logprob": -1.0}]
    content = [{"token": text, "logprob": -0.5, "top_logprobs": top} for text in texts]
    page.play({"choices": [{"delta": {"content": "Let me see: !"}, "logprobs": {"content": content}}]})
    page.click("#toggle-settings")
    page.check("#show-tokens")
    page.say("12 and 7?")
    asked = page.play("")
    page.click(".token >> nth=3")
    page.click(".choices button >> text=+7")
    page.wait_for_selector("text=2/2")
    assert asked[0]["messages"][-1]["content"] == [
        {"type": "text", "text": "Let me see: "},
        {"type": "python", "text": "12+7"},
    ]


def test_what_came_at_once_is_not_called_fast(page):
    tool = {"arguments": "12*7", "output": "84"}
    timings = {"predicted_per_second": 1e6}
    page.play(
        {"choices": [{"delta": {"executed_tools": [tool]}}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}, "timings": timings},
    )
    page.say("12 times 7?")
    assert page.inner_text(".tool .result") == "= 84"
    assert "1000000" not in page.inner_text(".receipt summary")
