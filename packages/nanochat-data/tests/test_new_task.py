"""Writing a task: one file, whose text is below, and one line that names it; then all that tasks are used for works."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from nanochat_data import ConversationLoader, TaskOptions, make_task, parse_mixture
from nanochat_data.tasks import TASKS
from nanochat_data.testing import check_task

THE_FILE = '''
"""Capitals: a country is given, its capital is asked."""

from pathlib import Path

from nanochat_data import Conversation, Task
from nanochat_data.tasks.records import HubDataset, string_field

DATASET = HubDataset(path="someone/capitals", folder="capitals")


class Capitals(Task):
    """Right is the name of the capital, whatever its case."""

    def __init__(self, split: str, *, mirror: Path | None = None) -> None:
        self._rows = DATASET.load(split, mirror=mirror)

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        country, capital = (string_field(self._rows[index], field, "Capitals") for field in ("country", "capital"))
        return {
            "messages": [
                {"role": "user", "content": f"What is the capital of {country}?"},
                {"role": "assistant", "content": capital},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip().lower() == conversation["messages"][-1]["content"].lower()
'''
CAPITALS = {"Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo", "Japan": "Tokyo", "Chad": "N'Djamena"}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The names of tasks, one of them new; its file and data are where a person would put theirs."""
    for split, countries in (("train", ["Peru", "Kenya", "Norway", "Japan"]), ("test", ["Chad"])):
        path = tmp_path / "mirror" / "capitals" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"country": country, "capital": CAPITALS[country]} for country in countries]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "capitals.py").write_text(THE_FILE)
    spec = importlib.util.spec_from_file_location("capitals", tmp_path / "capitals.py")
    capitals = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "capitals", capitals)
    spec.loader.exec_module(capitals)
    # The one line; in this package it is an entry of TASKS in tasks/registry.py.
    return {**TASKS, "capitals": lambda options: capitals.Capitals(options.split, mirror=options.mirror)}


def test_a_new_task_is_found_graded_sliced_and_mixed(tasks, tmp_path):
    options = TaskOptions(mirror=tmp_path / "mirror")
    task = make_task("Capitals", options, tasks=tasks)
    check_task(task)
    assert len(task) == 4
    for conversation in task:
        country = conversation["messages"][0]["content"].removeprefix("What is the capital of ").rstrip("?")
        assert task.evaluate(conversation, f" {CAPITALS[country].upper()}\n")
        assert task.reward(conversation, "Atlantis") == 0.0
    held_out = make_task("capitals", TaskOptions(split="test", mirror=options.mirror), tasks=tasks)
    assert held_out[0]["messages"][1]["content"] == "N'Djamena"
    assert len(parse_mixture("capitals[:2]:3, spellingbee[:5]", options, tasks=tasks)) == 11


def test_a_new_task_can_be_trained_on(tasks, tmp_path):
    mixture = parse_mixture("capitals:2", TaskOptions(mirror=tmp_path / "mirror"), tasks=tasks)

    def render(conversation):
        asked, answered = (message["content"].encode() for message in conversation["messages"])
        return [256, *asked, *answered], [0] * (1 + len(asked)) + [1] * len(answered)

    batch = next(ConversationLoader(mixture, render, pad_id=256, batch_size=2, sequence_len=200))
    supervised = bytes(batch.targets[batch.targets >= 0].astype("uint8"))
    assert all(supervised.count(CAPITALS[country].encode()) >= 1 for country in ("Peru", "Kenya", "Norway", "Japan"))


def test_its_data_missing_or_damaged_is_one_line(tasks, tmp_path):
    with pytest.raises(ValueError, match=r"no train.jsonl, train.jsonl.gz or train.parquet in .*capitals"):
        make_task("capitals", TaskOptions(mirror=Path(tmp_path)), tasks=tasks)
    (tmp_path / "mirror" / "capitals" / "test.jsonl").write_text('{"country": "Chad"}\n')
    task = make_task("capitals", TaskOptions(split="test", mirror=tmp_path / "mirror"), tasks=tasks)
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: no text in the field 'capital'"):
        task[0]
