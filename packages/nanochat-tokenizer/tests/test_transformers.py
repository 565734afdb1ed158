"""Our tokenizer as one of transformers: equal ids, the chat format as a template with equal masks, and files both ways."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nanochat_tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    convert,
    render_conversation,
    render_for_completion,
    train_tokenizer,
)
from nanochat_tokenizer.testing import byte_tokenizer
from transformers import AutoTokenizer

CORPUS = [f"The cat number {i} sat on the mat, didn't it?\n\tÇa va, naïve café? {i * 77}" for i in range(300)]
TOKENIZER = train_tokenizer(CORPUS, vocab_size=400)
THEIRS = convert.to_transformers(TOKENIZER)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="'sStTlLvVeE 09\r\n\t.-,éß漢😀ſ\u00a0\u0345\u2028"))
@example("<|user_start|>")
@example("I'LL we've 12345 '\u017f \r\n\r\n  x\u2003\u2003y")
def test_ids_are_equal_on_any_text(text):
    ids = TOKENIZER.encode(text)
    assert THEIRS(text, split_special_tokens=True)["input_ids"] == ids
    assert THEIRS.decode(ids, clean_up_tokenization_spaces=False) == text


def test_text_that_spells_special_tokens_is_plain_only_on_request():
    text = "a<|assistant_end|>b"
    assert THEIRS(text, split_special_tokens=True)["input_ids"] == TOKENIZER.encode(text)
    assert TOKENIZER.special_id("<|assistant_end|>") in THEIRS(text)["input_ids"]


PARTS = [
    {"type": "text", "text": "It is "},
    {"type": "python", "text": "1+1"},
    {"type": "python_output", "text": "2"},
    {"type": "text", "text": "2."},
]


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "Hi")],
        [("system", "Be brief."), ("user", "  Hi\n"), ("assistant", " Hello! ")],
        [("user", "1+1?"), ("assistant", PARTS), ("user", "Sure?"), ("assistant", "Yes.")],
        [("user", "x"), ("assistant", []), ("user", "<b>&amp;")],
        [("user", "1+1?"), ("assistant", PARTS[:2]), ("tool", "2"), ("assistant", "It is 2."), ("user", "Thanks")],
        [("user", "1+1?"), ("assistant", PARTS[:2]), ("tool", "2")],
    ],
)
def test_the_template_gives_the_ids_and_the_mask_of_the_renderer(messages):
    messages = [{"role": role, "content": content} for role, content in messages]
    ids, mask = render_conversation(TOKENIZER, {"messages": messages})
    theirs = THEIRS.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert theirs["input_ids"] == ids
    assert theirs["assistant_masks"] == mask
    if messages[-1]["role"] != "assistant":
        prompt = THEIRS.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert prompt["input_ids"] == render_for_completion(TOKENIZER, {"messages": messages})


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_the_template_takes_the_parts_that_chat_servers_make_of_a_string(role):
    words = [("system", "Be brief."), ("user", "1+1?"), ("assistant", PARTS[:2]), ("tool", "2"), ("assistant", "2.")]
    plain = [{"role": name, "content": content} for name, content in words]
    parts = [
        {**message, "content": [{"type": "text", "text": letter} for letter in message["content"]]}
        if message["role"] == role and isinstance(message["content"], str)
        else message
        for message in plain
    ]
    assert parts != plain
    assert THEIRS.apply_chat_template(parts, tokenize=False) == THEIRS.apply_chat_template(plain, tokenize=False)


def test_the_template_refuses_images():
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(Exception, match="only text parts"):
        THEIRS.apply_chat_template([{"role": "user", "content": picture}])


def test_the_template_refuses_roles_that_do_not_alternate():
    with pytest.raises(Exception, match="must alternate"):
        THEIRS.apply_chat_template([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_tokenizer()], ids=["trained", "bytes"])
def test_files_go_out_and_come_back_the_same(tmp_path, tokenizer):
    convert.save_transformers(tokenizer, tmp_path, max_tokens=64)
    assert convert.from_transformers(tmp_path).fingerprint == tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (
        tokenizer.bos_id,
        tokenizer.special_id("<|assistant_end|>"),
    )
    assert theirs.model_max_length == 64
    assert len(theirs) == tokenizer.vocab_size
    theirs.save_pretrained(tmp_path / "again")
    assert convert.from_transformers(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_ranks_that_no_merges_make_are_refused(tmp_path):
    orphan = Tokenizer({bytes([i]): i for i in range(256)} | {b"abc": 256}, special_tokens=SPECIAL_TOKENS)
    with pytest.raises(ValueError, match=r"token 256 \(b'abc'\) is not made by merging"):
        convert.save_transformers(orphan, tmp_path)


def change(values, path, new):
    *parents, last = path
    for name in parents:
        values = values[name]
    values[last] = new


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        (("model", "type"), "Unigram", "is Unigram, not BPE"),
        (("normalizer",), {"type": "NFC"}, "normalizes text"),
        (("pre_tokenizer", "pretokenizers", 1, "use_regex"), True, "splits text by"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "splits text by Whitespace"),
        (("pre_tokenizer", "pretokenizers", 0, "invert"), True, "must isolate"),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "("}, "tokenizer.json: "),
        (("added_tokens", 0, "id"), 900, "do not have the ids that follow"),
        (("model", "vocab", "日"), 7, "byte letters"),
        (("model", "merges", 3), ["a", "b"], "not those that the order of its ids implies"),
        (("model", "vocab"), [], "is no tokenizer.json"),
        (("model",), None, "is no tokenizer.json"),
    ],
)
def test_files_that_we_could_not_follow_are_refused_by_name(tmp_path, path, new, complaint):
    convert.save_transformers(TOKENIZER, tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values, path, new)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=complaint) as caught:
        convert.from_transformers(tmp_path)
    assert str(file) in str(caught.value)
