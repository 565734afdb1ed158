"""Conversations as people bring them: shapes, packed files, sets on the hub, weights, and what is in them."""

import gzip
import json
from itertools import islice

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from nanochat_data import CustomJSON, Statistics, TaskOptions, as_messages, make_task, parse_mixture, read_conversations

PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SYSTEM = {"role": "system", "content": "Be kind."}
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
SHAPES = {
    "messages": ({"messages": PLAIN, "id": 7}, PLAIN),
    "a bare list": (PLAIN, PLAIN),
    "ShareGPT": ({"conversations": SHAREGPT}, PLAIN),
    "ShareGPT with a system": ({"system": "Be kind.", "conversations": SHAREGPT}, [SYSTEM, *PLAIN]),
    "ShareGPT with a tool": (
        {"conversations": [*SHAREGPT, {"from": "observation", "value": "3"}, {"from": "gpt", "value": "3!"}]},
        [*PLAIN, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3!"}],
    ),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "Yo"}, PLAIN),
    "Alpaca with an input": (
        {"instruction": "Add", "input": "1 and 2", "output": "3", "system": "Be kind."},
        [SYSTEM, {"role": "user", "content": "Add\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": "Yo"}, PLAIN),
    "prompt and completion as messages": ({"prompt": PLAIN[:1], "completion": PLAIN[1:]}, PLAIN),
    "weights": ([PLAIN[0], {**PLAIN[1], "weight": 0}], [PLAIN[0], {**PLAIN[1], "weight": 0}]),
    "no weights": ([{**message, "weight": None} for message in PLAIN], PLAIN),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_is_recognised(shape):
    value, messages = SHAPES[shape]
    assert as_messages(value) == messages


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"text": "once"}, "a conversation is .* the fields here are text"),
        ({"conversations": [{"from": "martian", "value": "Hi"}]}, "message 0 is from 'martian'; known are human"),
        ({"conversations": [{"role": "user"}]}, 'message 0 must be {"from"'),
        ({"instruction": 3, "output": "Yo"}, "message 0 must have text"),
        ({"prompt": None, "completion": "Yo"}, "message 0 must have text"),
        ([PLAIN[0], {"role": "tool", "content": "3"}], "message 1 has role 'tool' where 'assistant'"),
        ([*PLAIN, PLAIN[1]], "message 2 has role 'assistant' where 'user' or 'tool'"),
        ([{**PLAIN[0], "weight": 1}, PLAIN[1]], "message 0 has weight 1; an assistant's"),
        ([PLAIN[0], {**PLAIN[1], "weight": 2}], "message 1 has weight 2"),
        (PLAIN[:1], "needs a user's and an assistant's"),
    ],
)
def test_what_is_no_conversation_is_refused_by_place(value, complaint):
    with pytest.raises(ValueError, match=complaint):
        as_messages(value)


def pack(path, text: str) -> None:
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text.encode())
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in text.splitlines()]), path)
    else:
        path.write_text(text)


NAMES = ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.json", "c.json.gz", "c.json.zst", "c.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_unpacked(tmp_path, name):
    rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pack(tmp_path / name, json.dumps(rows) if ".json" in name and ".jsonl" not in name else lines)
    mixture = parse_mixture(f"{tmp_path / name}:2")
    assert len(mixture) == 6
    assert {conversation["messages"][1]["content"] for conversation in mixture} == {"0", "1", "2"}


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_named(tmp_path, name):
    pack(tmp_path / "whole.jsonl.zst", json.dumps(PLAIN) * 1000)
    pack(tmp_path / "whole.jsonl.gz", json.dumps(PLAIN) * 1000)
    damaged = {".gz": tmp_path / "whole.jsonl.gz", ".zst": tmp_path / "whole.jsonl.zst"}.get(name[-4:].lstrip("ln"))
    (tmp_path / name).write_bytes(damaged.read_bytes()[:-9] if damaged else b"[3")
    with pytest.raises(ValueError, match=rf"{name}.* (cannot be read|is not JSON|no parquet file)") as caught:
        CustomJSON(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_set_on_the_hub_is_a_task_by_its_name(tmp_path, monkeypatch):
    """`datasets` takes a folder of that name for the set, and so asks no hub here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for setting in ("datasets.config.HF_HUB_OFFLINE", "huggingface_hub.constants.HF_HUB_OFFLINE"):
        monkeypatch.setattr(setting, True)
    for folder in ("someone/chats", "mirror/someone/chats/data"):
        (tmp_path / folder).mkdir(parents=True)
        rows = (
            {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": f"{i}!"}]}
            for i in range(4)
        )
        (tmp_path / folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_hub = make_task("hub:someone/chats:train")
    from_mirror = make_task("hub:someone/chats", TaskOptions(mirror=tmp_path / "mirror"))
    assert list(from_hub) == list(from_mirror)
    assert sorted(conversation["messages"][1]["content"] for conversation in from_hub) == ["0!", "1!", "2!", "3!"]
    assert len(parse_mixture("hub:someone/chats:train[:2]:3", TaskOptions(mirror=tmp_path / "mirror"))) == 6
    with pytest.raises(ValueError, match="'hub:chats' must be hub:owner/name:split"):
        make_task("hub:chats")
    with pytest.raises(ValueError, match="data set someone/nothing cannot be loaded from the hub"):
        make_task("hub:someone/nothing:train")


def test_a_row_of_the_hub_that_is_no_conversation_is_named(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "train.jsonl").write_text('{"text": "once"}\n')
    task = make_task("hub:a/b:train", TaskOptions(mirror=tmp_path))
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: a conversation is .*the fields here are text"):
        task[0]


def test_statistics_count_lengths_repetitions_shared_items_and_faults(tmp_path):
    path = tmp_path / "chats.jsonl"
    others = [{"prompt": "Hi", "completion": "x" * n} for n in (8, 1, 8)]
    lines = [json.dumps(PLAIN), *map(json.dumps, others), "{", '{"text": "once"}', "", json.dumps(PLAIN)]
    path.write_text("\n".join(lines))

    def num_tokens(conversation) -> int:
        return sum(len(message["content"]) for message in conversation["messages"])

    found = Statistics.of(read_conversations(str(path)), num_tokens)
    assert found.lengths.tolist() == [4, 10, 3, 10, 4]
    assert found.num_repeated == 2
    assert [fault.partition(": ")[0].rpartition("/")[2] for fault in found.faults] == [
        f"chats.jsonl, line {n}" for n in (5, 6)
    ]
    short = Statistics.of(
        read_conversations(str(path)), lambda conversation: 4 if num_tokens(conversation) == 4 else -1
    )
    assert found.num_shared(short) == 5
    one = Statistics.of([{"messages": PLAIN}], num_tokens)
    assert (one.num_shared(found), found.num_shared(one)) == (1, 2)
    assert Statistics.of(islice(read_conversations("tinyworld"), 9), lambda _: 1).lengths.sum() == 9
    assert found.fill(9) == pytest.approx(31 / 40)
    assert Statistics.of(["a"] * 8, lambda _: 5).fill(9) == 1.0
    assert Statistics.of(["a", ValueError("no")], lambda _: 50).fill(9) == 1.0, "what is longer is cut"
    # Two documents of 7 in rows of 10: the second fills the first row, and its 4 left are behind a BOS of their own.
    assert Statistics.of("ab", lambda _: 7).fill(9, cut=True) == pytest.approx(15 / 20)
    assert np.all(Statistics.of([ValueError("no")], len).lengths == [])
