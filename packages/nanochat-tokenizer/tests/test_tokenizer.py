"""Round trips, files that are damaged, the chat format token by token, and streams cut inside characters."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_tokenizer import (
    SPECIAL_TOKENS,
    IncrementalDecoder,
    Tokenizer,
    render_conversation,
    render_for_completion,
    train_tokenizer,
    visualize,
)
from nanochat_tokenizer.testing import byte_tokenizer, check_tokenizer

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

CORPUS = [f"The cat number {i} sat on the mat and counted to {i * i}. Ça va, naïve café?" for i in range(200)]
TOKENIZER = train_tokenizer(CORPUS, vocab_size=400)
ID = {name[2:-2]: TOKENIZER.special_id(name) for name in SPECIAL_TOKENS}


def test_trained_and_byte_tokenizers_keep_the_contract():
    check_tokenizer(TOKENIZER)
    check_tokenizer(byte_tokenizer())
    assert TOKENIZER.vocab_size == 400
    assert TOKENIZER.bos_id == 391


@given(st.text())
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "<|", "|>"])).map("".join))
def test_no_text_spells_a_special_token(text):
    ids = TOKENIZER.encode(text)
    assert max(ids, default=0) < TOKENIZER.bos_id
    assert TOKENIZER.decode(ids) == text


def test_numbers_split_in_groups_of_two_digits():
    assert [TOKENIZER.decode([i]) for i in byte_tokenizer().encode("7")] == ["7"]
    pieces = [TOKENIZER.decode([i]) for i in TOKENIZER.encode("1234567")]
    assert max(len(p) for p in pieces) <= 2


def test_a_megabyte_of_one_character_is_encoded():
    for character in ("a", " ", "1"):
        text = character * 1_000_000
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.encode_batch(["b", text, "c"]) == [TOKENIZER.encode("b"), ids, TOKENIZER.encode("c")]


def test_a_vocabulary_too_small_or_too_large_is_refused():
    with pytest.raises(ValueError, match="vocab_size=264 is less than 265"):
        train_tokenizer(CORPUS, vocab_size=264)
    with pytest.raises(ValueError, match="vocab_size=5000"):
        train_tokenizer(["abab"], vocab_size=5000)


def test_saved_and_loaded_is_the_same(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.encode(CORPUS[7]) == TOKENIZER.encode(CORPUS[7])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranks.tiktoken", "tokenizer.json"]


@pytest.mark.parametrize("file", ["ranks.tiktoken", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "edited"])
def test_damaged_files_are_named(tmp_path, file, damage):
    TOKENIZER.save(tmp_path)
    path = tmp_path / file
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif file == "tokenizer.json":
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"special_tokens": values["special_tokens"][::-1]}))
    else:
        path.write_bytes(path.read_bytes().replace(b" 300\n", b" 301\n"))
    with pytest.raises(ValueError, match=r"edited|missing|JSON") as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token id 400 is outside the vocabulary of 400"):
        TOKENIZER.decode([3, 400])


TOOL_CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "1+1"},
                {"type": "python_output", "text": "2"},
                {"type": "text", "text": "It is 2."},
            ],
        },
    ]
}


def test_a_tool_conversation_token_by_token():
    ids, mask = render_conversation(TOKENIZER, TOOL_CHAT)
    encode = TOKENIZER.encode
    expected = [
        ([ID["bos"], ID["user_start"], *encode("Be brief.\n\n1+1?"), ID["user_end"], ID["assistant_start"]], 0),
        ([ID["python_start"], *encode("1+1"), ID["python_end"]], 1),
        ([ID["output_start"], *encode("2"), ID["output_end"]], 0),
        ([*encode("It is 2."), ID["assistant_end"]], 1),
    ]
    assert ids == [i for part, _ in expected for i in part]
    assert mask == [bit for part, bit in expected for _ in part]
    shown = visualize(TOKENIZER, ids, mask)
    assert shown.count("\x1b[32m") == sum(mask)
    assert "<|output_start|>" in shown


def test_completion_ends_where_the_assistant_speaks():
    ids = render_for_completion(TOKENIZER, TOOL_CHAT)
    assert ids[-1] == ID["assistant_start"]
    whole, mask = render_conversation(TOKENIZER, TOOL_CHAT)
    assert ids == whole[: mask.index(1)]
    assert render_for_completion(TOKENIZER, {"messages": TOOL_CHAT["messages"][:2]}) == ids


def test_a_tool_message_interrupts_the_assistants_turn():
    """It renders as the same answer does that holds the tool's output as a part."""
    call, output, text = TOOL_CHAT["messages"][2]["content"]
    turn = [{"role": "assistant", "content": [call]}, {"role": "tool", "content": output["text"]}]
    chat = {"messages": [*TOOL_CHAT["messages"][:2], *turn, {"role": "assistant", "content": text["text"]}]}
    ids, mask = render_conversation(TOKENIZER, chat)
    assert (ids, mask) == render_conversation(TOKENIZER, TOOL_CHAT)
    asked = render_for_completion(TOKENIZER, chat)
    assert asked == ids[: ids.index(ID["output_end"]) + 1]
    assert render_for_completion(TOKENIZER, {"messages": chat["messages"][:4]}) == asked


@given(st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=4))
def test_the_mask_follows_the_weight_of_each_message(weights):
    def chat(weights):
        turns = (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": w}] for w in weights
        )
        return {"messages": [message for turn in turns for message in turn]}

    ids, mask = render_conversation(TOKENIZER, chat(weights))
    assert ids == render_conversation(TOKENIZER, chat([1] * len(weights)))[0]
    turn = [0, 0, 0, 0, 1, 1]
    assert mask == [0, *(bit * (1 if weight is None else weight) for weight in weights for bit in turn)]


def test_cutting_is_the_callers_choice():
    chat = {"messages": [{"role": "user", "content": "x " * 3000}]}
    assert len(render_conversation(TOKENIZER, chat)[0]) == 2048
    assert len(render_conversation(TOKENIZER, chat, max_tokens=None)[0]) > 3000


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "non-empty list"),
        ([{"role": "assistant", "content": "hi"}], r"messages\[0\] has role 'assistant', expected 'user'"),
        ([{"role": "user", "content": "a"}] * 2, r"messages\[1\] has role 'user', expected 'assistant'"),
        ([{"role": "system", "content": "a"}], "followed by a user message"),
        (
            [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
            r"messages\[1\] has role 'tool', expected",
        ),
        ([{"role": "user", "content": "a", "weight": 1}], r"messages\[0\] has weight 1; only an assistant's"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}],
            r"messages\[1\] has weight 0.5",
        ),
        ([{"role": "user", "content": 3}], r"messages\[0\] has content of type int"),
        ([{"role": "user"}], r"messages\[0\] needs 'role' and 'content'"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "image", "text": ""}]}],
            r"messages\[1\].content\[0\]",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_place(messages, complaint):
    with pytest.raises(ValueError, match=complaint):
        render_conversation(TOKENIZER, {"messages": messages})


@given(st.binary(max_size=60))
def test_streamed_pieces_join_to_the_whole(data):
    tokenizer = byte_tokenizer()
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.push(byte) for byte in data]
    assert "".join(pieces) + decoder.flush() == data.decode("utf-8", errors="replace")


def test_an_emoji_appears_whole_or_not_at_all():
    decoder = IncrementalDecoder(byte_tokenizer())
    assert [decoder.push(byte) for byte in "a😀".encode()] == ["a", "", "", "", "😀"]
