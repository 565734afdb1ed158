"""docs/how-to/mirror.md: the folders it names are those the tasks read, and its check runs."""

import contextlib
import io
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

TEXT = (Path(__file__).parent.parent / "docs/how-to/mirror.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `([\w-]+)` \| `([\w/-]+)` \| `([\w/-]+)` \| `([\w/-]+)` \| ([\w, ]+) \|$", TEXT, re.MULTILINE)
ROWS = {
    "arc": {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    "mmlu": {"question": "Why?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 0},
    "gsm8k": {"question": "1 + 1?", "answer": "<<1+1=2>>2\n#### 2"},
    "humaneval": {"prompt": "def f():\n", "canonical_solution": "    pass\n", "entry_point": "f", "test": "check = print"},
    "smoltalk": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
}  # fmt: skip


def rows(task: str) -> list[dict]:
    return [ROWS[task.split("-")[0]]] * 3


def test_the_table_has_all_tasks_that_need_files():
    from nanochat_data.tasks import TASKS

    generated = {name for name in TASKS if name.startswith(("tinyworld", "spellingbee", "simplespelling"))}
    assert {task for task, *_ in TABLE} == set(TASKS) - generated


@pytest.mark.parametrize("layout", ["hub", "short"])
def test_the_check_reads_a_mirror_that_is_laid_out_as_it_says(tmp_path, monkeypatch, layout):
    for task, _, on_hub, short, splits in TABLE:
        for split in splits.split(", "):
            folder = tmp_path / (on_hub if layout == "hub" else short)
            folder.mkdir(parents=True, exist_ok=True)
            if layout == "hub":
                table = pyarrow.Table.from_pylist(rows(task))
                pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
            else:
                (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(task)))
    monkeypatch.setenv("NANOCHAT_DATA_MIRROR", str(tmp_path))
    [check] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(check, {})
    assert sorted(line.split()[:2] for line in said.getvalue().splitlines()) == sorted(
        [task, "3"] for task, *_ in TABLE
    )


def test_the_commands_fetch_every_data_set_into_its_place():
    fetched = dict(re.findall(r"^fetch (\S+) '(\S+)'$", TEXT, re.MULTILINE))
    assert set(fetched) == {data_set for _, data_set, *_ in TABLE}
    for _, data_set, on_hub, _, _ in TABLE:
        assert on_hub.startswith(data_set)
        below = on_hub.removeprefix(data_set).strip("/")
        assert Path(below, "test.parquet").match(fetched[data_set])
