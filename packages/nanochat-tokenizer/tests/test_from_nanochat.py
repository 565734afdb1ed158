"""The reference's pickled tokenizer comes in unchanged; pickles that would do anything else are refused unread."""

import os
import pickle
from collections import OrderedDict

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, convert, train_tokenizer

CORPUS = [f"The cat number {i} sat on the mat and counted to {i * i}. Ça va, naïve café?" for i in range(200)]
TRAINED = train_tokenizer(CORPUS, vocab_size=400)


def encoding(**changes):
    values = {
        "name": "rustbpe",
        "pat_str": SPLIT_PATTERN,
        "mergeable_ranks": TRAINED.ranks,
        "special_tokens": {name: 391 + i for i, name in enumerate(SPECIAL_TOKENS)},
    }
    return tiktoken.Encoding(**values | changes)


def pickled_state(state):
    """A pickle of an Encoding with any state, as an attacker would make one."""
    empty = pickle.dumps(encoding(mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}))
    head = empty[: empty.index(b"Encoding") + len(b"Encoding")] + b"\x94\x93\x94)\x81\x94"
    without_frame = head[:2] + head[11:]
    return without_frame + pickle.dumps(state, 3)[2:-1] + b"b."


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickled_encoding_comes_in_with_equal_ids(tmp_path, protocol):
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(encoding(), protocol))
    tokenizer = convert.from_nanochat(path)
    assert tokenizer.fingerprint == TRAINED.fingerprint
    assert [tokenizer.encode(text) for text in CORPUS[:20]] == encoding().encode_ordinary_batch(CORPUS[:20])


class Hostile:
    """What unpickling would do: leave a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_nothing_happens(tmp_path, protocol):
    path, marker = tmp_path / "tokenizer.pkl", tmp_path / "ran"
    for value in (Hostile(marker), [Hostile(marker)], {"mergeable_ranks": Hostile(marker)}):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(ValueError, match=r"tokenizer.pkl: the pickle") as caught:
            convert.from_nanochat(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))  # it would have worked
    assert marker.exists()


def test_a_call_hidden_in_an_encoding_is_refused(tmp_path):
    path, marker = tmp_path / "tokenizer.pkl", tmp_path / "ran"
    path.write_bytes(pickled_state({"name": Hostile(marker)}))
    with pytest.raises(ValueError, match=r"the pickle asks for (posix|nt)\.mkdir; only tiktoken\.core\.Encoding"):
        convert.from_nanochat(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "pickle"),
        (b"not a pickle", "opcode|uses|damaged"),
        (pickle.dumps(encoding())[:-20], "only 2 remain"),
        (pickle.dumps({"a": 1}), "STOP"),
        (pickle.dumps(OrderedDict), "asks for collections.OrderedDict"),
        (pickle.dumps(len), "asks for builtins.len"),
        (b"\x80\x04cos\nsystem\n.", r"asks for os\.system"),
        (b"\x80\x04ctiktoken.core\nEncoding\n)R.", "uses REDUCE"),
        (b"\x80\x04ctiktoken.core\nEncoding\n.", "STOP"),
        (b"\x80\x04ctiktoken.core\nEncoding\n}b.", "BUILD"),
        (b"\x80\x04K\x01K\x02K\x03s.", "SETITEM"),
        (b"\x80\x04h\x07.", "damaged"),
        (b"\x80\x04}(}K\x01u.", "damaged"),
        (b"\x80\x04\x82\x01.", "uses EXT1"),
        (b"\x80\x04Pid\n.", "uses PERSID"),
        (pickled_state("gpt2"), "built-in encoding 'gpt2'"),
        (pickled_state({"name": "x"}), "must have the attributes"),
        (pickled_state({"name": 1, "pat_str": "", "mergeable_ranks": {}, "special_tokens": {}}), "name of the pickled"),
        (pickled_state({"name": "", "pat_str": "", "mergeable_ranks": {1: 1}, "special_tokens": {}}), "map bytes to"),
        (pickled_state({"name": "", "pat_str": "", "mergeable_ranks": {}, "special_tokens": {}}), "lack the single"),
        (pickle.dumps(encoding(special_tokens={"<|bos|>": 500})), "ids that follow the 391 merged"),
        (pickle.dumps(encoding()).replace(SPLIT_PATTERN.encode(), b"(" * len(SPLIT_PATTERN)), "tokenizer.pkl: "),
    ],
)
def test_what_is_no_tokenizer_is_one_line_that_names_the_file(tmp_path, content, complaint):
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        convert.from_nanochat(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.pkl is missing"):
        convert.from_nanochat(tmp_path / "tokenizer.pkl")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_never_raises_anything_but_a_value_error(tmp_path_factory, data):
    content = bytearray(
        pickled_state({"name": "x", "pat_str": "a", "mergeable_ranks": {b"a": 0}, "special_tokens": {}})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pkl: "):
        convert.from_nanochat(path)
