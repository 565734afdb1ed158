"""Constrained completions: whatever a model would say, what comes out is of the grammar, and ends where that does."""

import json
import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_engine import Engine, GrammarError, Grammars, Request, SamplingParams
from nanochat_engine.sampling import constrain_logits
from nanochat_engine.testing import SPECIALS, ByteTokenizer, ScriptedLM, TinyLM
from nanochat_engine.text_stream import ASSISTANT_END

pytest.importorskip("llguidance")
train_tokenizer = pytest.importorskip("nanochat_tokenizer").train_tokenizer
BYTES = ByteTokenizer()
END = BYTES.special_id(ASSISTANT_END)
POINT = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bob"]},
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "on": {"type": "boolean"},
        "tags": {"type": "array", "items": {"const": "a"}, "maxItems": 3},
    },
    "required": ["name", "x", "on", "tags"],
    "additionalProperties": False,
}
MERGED = train_tokenizer(['{"name": "Ann", "x": 12, "on": true, "tags": []}', "one two three"] * 20, vocab_size=290)


@pytest.fixture(scope="module")
def grammars():
    return Grammars(BYTES)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("tokenizer", [BYTES, MERGED], ids=["bytes", "merges"])
def test_samples_beside_others_are_of_their_grammars(tokenizer, cached):
    """Several grammars, plain text, n samples, greedy and not, in the same steps."""
    engine = Engine(TinyLM(vocab_size=tokenizer.vocab_size, cached=cached), tokenizer, max_rows=8)
    grammars = Grammars(tokenizer)
    point, pattern = grammars.json_schema(POINT), grammars.regex(r"[a-f]{3}-[0-9]{2}")
    asked = [
        SamplingParams(constraint=point, n=3, temperature=20.0),
        SamplingParams(constraint=pattern, temperature=0.0),
        SamplingParams(max_tokens=20, ignore_eos=True),
        SamplingParams(constraint=pattern, temperature=3.0, top_k=5, logprobs=1, repetition_penalty=1.3),
        SamplingParams(constraint=pattern, temperature=1.0, ignore_eos=True, logit_bias={65: 100.0}),
    ]
    prompt = engine.prompt_ids("Go:")
    points, *others = engine.run([Request(token_ids=prompt, params=params) for params in asked])
    assert [completion.finish_reason for completion in points] == ["stop"] * 3
    for completion in points:
        point = json.loads(completion.text)
        assert list(point) == ["name", "x", "on", "tags"]
        assert point["name"] in ("Ann", "Bob")
        assert point["x"] in range(100)
        assert isinstance(point["on"], bool)
        assert point["tags"] in ([], ["a"], ["a"] * 2, ["a"] * 3)
        assert completion.end_id in (tokenizer.special_id(ASSISTANT_END), tokenizer.bos_id)
    assert len({completion.text for completion in points}) > 1
    assert len(others[1][0].token_ids) == 20  # the plain one is left alone
    for [completion] in (others[0], others[2], others[3]):
        assert re.fullmatch(r"[a-f]{3}-[0-9]{2}", completion.text)
        assert completion.finish_reason == "stop"


def test_what_a_model_wants_is_kept_where_the_grammar_lets_it():
    """A model that says b and then ends: `[ab]+` lets it, `[ab]{3}` makes it go on, `a+` has it say something else."""

    def next_token(history):
        return ord("b") if history[-1] == ord(":") else END

    engine, grammars = Engine(ScriptedLM(next_token), BYTES), Grammars(BYTES)
    said = {
        pattern: engine.complete(":", constraint=grammars.regex(pattern), temperature=0.0)[0].text
        for pattern in ("[ab]+", "[ab]{3}", "ac")
    }
    assert said["[ab]+"] == "b"
    assert re.fullmatch("b[ab]{2}", said["[ab]{3}"])
    assert said["ac"] == "ac"


def test_an_end_by_bos_is_one_too():
    engine = Engine(ScriptedLM(lambda history: BYTES.bos_id), BYTES)
    [completion] = engine.complete("a", constraint=Grammars(BYTES).regex("b*"), temperature=0.0)
    assert (completion.text, completion.end_id) == ("", BYTES.bos_id)


def test_special_tokens_are_no_text_of_a_grammar():
    """`<|python_start|>` as a token would call a tool; spelled out it is text like any other."""
    start = BYTES.special_id("<|python_start|>")
    engine = Engine(ScriptedLM(lambda history: start), BYTES)
    [completion] = engine.complete("a", constraint=Grammars(BYTES).choice(["<|python_start|>6*7"]), temperature=0.0)
    assert completion.text == "<|python_start|>6*7"
    assert not completion.tool_calls


def test_token_limit_and_stop_strings_come_first(grammars):
    engine = Engine(TinyLM(), BYTES)
    constraint = grammars.regex("(ab){50}")
    cut = engine.complete("x", constraint=constraint, max_tokens=5)[0]
    assert (cut.text, cut.finish_reason) == ("ababa", "length")
    assert engine.complete("x", constraint=constraint, stop=["ba"])[0].text == "a"


def test_calls_of_functions(grammars):
    schema = {"type": "object", "properties": {"city": {"const": 'New "York"'}}, "required": ["city"], "$defs": {}}
    constraint = grammars.calls({"get_weather": {**schema, "additionalProperties": False}})
    text = Engine(TinyLM(), BYTES).complete("x", constraint=constraint)[0].text
    assert text == 'get_weather {"city": "New \\"York\\""}'


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=3))
def test_a_choice_is_one_of_its_texts_whatever_they_hold(texts):
    constraint = Grammars(BYTES).choice(texts).start()
    first = {
        8 * index + bit for index, octet in enumerate(constraint.allowed()) for bit in range(8) if octet >> bit & 1
    }
    assert first == {text.encode()[0] for text in texts}
    for byte in texts[-1].encode():
        assert constraint.allowed()[byte // 8] >> byte % 8 & 1
        constraint.accept(byte)
    assert constraint.allowed()[END // 8] >> END % 8 & 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda grammars: grammars.regex("a(+"), "repetition operator missing"),
        (lambda grammars: grammars.json_schema({"type": "objekt"}), "objekt"),
        (lambda grammars: grammars.json_schema({"$ref": "https://example.com/schema"}), "not present"),
        (lambda grammars: grammars.json_schema("[]"), "object"),
        (lambda grammars: grammars.choice([]), "at least one"),
        (lambda grammars: grammars.choice(["a", ""]), "empty"),
        (lambda grammars: grammars.calls({"f": {"not": {}}}), "not"),
        (lambda grammars: grammars.lark("start: oops"), "oops"),
    ],
)
def test_what_is_no_grammar(grammars, make, complaint):
    with pytest.raises(GrammarError, match=complaint) as error:
        make(grammars)
    assert "\n" not in str(error.value)


def test_a_grammar_that_turns_out_too_complex_ends_its_completion(grammars):
    schema = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3000)}}
    engine, constraint = Engine(TinyLM(), BYTES), grammars.json_schema(schema)
    with pytest.raises(GrammarError, match="cannot be followed") as error:
        engine.complete("x", constraint=constraint)
    assert "\n" not in str(error.value)
    assert engine.complete("x", max_tokens=3)[0].finish_reason in ("stop", "length")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"install nanochat-engine\[grammar\]"):
        Grammars(BYTES)


class Failing:
    """Of two samples the second one's constraint fails at its third token."""

    def __init__(self, num_started=(), sample=0):
        self.num_started, self.sample, self.num_seen = list(num_started), sample, 0

    def start(self):
        self.num_started.append(1)
        return Failing(sample=len(self.num_started))

    def allowed(self):
        if self.sample == 2 and self.num_seen == 2:
            raise RuntimeError("the grammar cannot be followed")
        return bytes([0] * 12 + [2])  # "a"

    def accept(self, token_id):
        assert token_id == ord("a")
        self.num_seen += 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_constraint_that_fails_ends_its_sample_alone(cached):
    engine = Engine(TinyLM(cached=cached), BYTES)
    events = list(engine.events(Request(token_ids=[1], params=SamplingParams(constraint=Failing(), n=2, max_tokens=4))))
    ends = {event.sample: (event.finished, str(event.error)) for event in events if event.finished}
    assert ends == {0: ("length", "None"), 1: ("error", "the grammar cannot be followed")}


@pytest.mark.parametrize("size", [1, 8, 9, 33, len(SPECIALS) + 256])
def test_the_mask_may_be_shorter_or_longer_than_the_vocabulary(size):
    logits = torch.arange(2.0 * size).view(2, size)
    for length in (1, size // 8 + 1, size // 8 + 9):
        allowed = constrain_logits(logits, [None, b"\x01" + b"\xff" * (length - 1)])
        assert allowed[0].equal(logits[0])
        kept = [index for index in range(size) if index == 0 or 8 <= index < 8 * length]
        assert allowed[1].isfinite().nonzero()[:, 0].tolist() == kept
        assert allowed[1, kept].equal(logits[1, kept])
