"""ARC, MMLU, HumanEval and SmolTalk: the reference's prompts and graders, from files of the hub's shape and from real data."""

import json
import os
from pathlib import Path

import pytest
from nanochat_data.tasks import ARC, MMLU, HumanEval, SmolTalk, TaskOptions, make_task
from nanochat_data.tasks.humaneval import extract_program, leading_imports
from nanochat_data.testing import check_task

REAL_DATA = Path(os.environ.get("NANOCHAT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the shared data are not here")


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def test_a_multiple_choice_prompt_is_the_references(tmp_path):
    row = {"question": "Why?", "choices": {"text": ["Yes", "No"], "label": ["A", "B"]}, "answerKey": "B"}
    task = ARC("ARC-Easy", "test", folder=write_rows(tmp_path / "test.jsonl", row))
    user, assistant = task[0]["messages"]
    assert user["content"] == (
        "Multiple Choice question: Why?\n- Yes=A\n- No=B\n\nRespond only with the letter of the correct answer."
    )
    assert assistant["content"] == "B"
    assert task.letters(0) == ["A", "B"]
    assert task.eval_type == "categorical"
    assert task.evaluate(task[0], "B")
    assert not task.evaluate(task[0], "A")
    check_task(task)


def test_mmlu_turns_an_index_into_a_letter_and_unwraps_auxiliary_rows(tmp_path):
    row = {"question": "2 + 2?", "subject": "arithmetic", "choices": ["1", "2", "3", "4"], "answer": 3}
    folder = write_rows(tmp_path / "test.jsonl", row)
    write_rows(tmp_path / "auxiliary_train.jsonl", {"train": row})
    for split in ("test", "auxiliary_train"):
        task = MMLU(split, folder=folder)
        assert task[0]["messages"][1]["content"] == "D"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "C"},
            r"the answer .C. is not one of",
        ),
        ({"question": "?", "choices": ["a"], "answerKey": "A"}, r"the choices are not as many"),
        (
            {"question": "?", "choices": {"text": ["a"], "label": ["A"]}},
            r"no text in the field 'answerKey'",
        ),
    ],
)
def test_damaged_rows_are_named(tmp_path, row, complaint):
    task = ARC("ARC-Easy", "test", folder=write_rows(tmp_path / "test.jsonl", row))
    with pytest.raises(ValueError, match=rf"test.jsonl, line 1: {complaint}"):
        task[0]


def test_damaged_rows_of_mmlu_and_smoltalk_are_named(tmp_path):
    good = {"question": "?", "subject": "s", "choices": ["1", "2"], "answer": 1}
    folder = write_rows(tmp_path / "test.jsonl", good, {**good, "answer": 2})
    task = MMLU("test", folder=folder)
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: there is no list of choices"):
        list(task)
    folder = write_rows(tmp_path / "train.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: a conversation needs"):
        SmolTalk("train", folder=folder)[0]


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"test.jsonl holds no row"):
        ARC("ARC-Easy", "test", folder=write_rows(tmp_path / "test.jsonl"))


def test_smoltalk_is_read_as_conversations(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    task = SmolTalk("train", folder=write_rows(tmp_path / "train.jsonl", {"messages": messages}))
    assert task[0]["messages"] == messages


PROBLEM = {
    "task_id": "X/0",
    "prompt": 'import math\nfrom typing import List\n\n\ndef twice(x: int) -> int:\n    """Doubles."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(math.floor(3.5)) == 6\n",
}


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("def twice(x):\n    return 2 * x", True),
        ("Here you are:\n```python\ndef twice(x):\n    return x + x\n```\nIt doubles.", True),
        ("```\ndef twice(x): return x << 1\n```", True),
        ("```python   \ndef twice(x): return 2 * x\n```\n```python\nraise ValueError\n```", True),
        ("```python\ndef twice(x): return 2 * x", False),
        ("```\n\n```\n```python\ndef twice(x): return 2 * x\n```", False),
        ("def twice(x):\n    return 3 * x", False),
        ("I cannot.", False),
        ("", False),
        ("def check(candidate): pass\nimport os; os._exit(0)", False),
    ],
)
def test_humaneval_runs_the_program_of_the_answer(tmp_path, completion, right):
    task = HumanEval(folder=write_rows(tmp_path / "test.jsonl", PROBLEM))
    assert task.evaluate(task[0], completion) is right


def test_the_tested_program_is_the_prompts_imports_and_the_answer():
    assert leading_imports("# note\nimport a\n\ndef f():\n    import b") == "import a"
    assert leading_imports(PROBLEM["prompt"]) == "import math\nfrom typing import List"
    assert extract_program("  x  ") == "x"


@pytest.mark.parametrize(
    "completion",
    [
        "class Yes(int):\n    def __eq__(self, other): return True\ndef twice(x): return Yes()",
        "import math\nmath.floor = lambda x: 2\ndef twice(x): return 4",
        "def check(candidate): pass\ndef twice(x): return 0",
    ],
)
def test_an_answer_cannot_reach_what_judges_it(tmp_path, completion):
    task = HumanEval(folder=write_rows(tmp_path / "test.jsonl", PROBLEM))
    assert task.evaluate(task[0], completion) is False


@needs_real_data
def test_real_sets_are_read_whole():
    options = TaskOptions(split="test", mirror=REAL_DATA)
    assert [len(make_task(name, options)) for name in ("arc-easy", "mmlu", "humaneval")] == [1875, 14042, 164]
    for name in ("arc-easy", "arc-challenge", "mmlu"):
        task = make_task(name, options)
        assert all(item["messages"][1]["content"] in task.letters(i) for i, item in enumerate(task[:300]))


@needs_real_data
@pytest.mark.slow
def test_humanevals_own_solutions_pass_and_broken_ones_do_not():
    task = HumanEval(mirror=REAL_DATA)
    for conversation in task:
        prompt, solution = (message["content"] for message in conversation["messages"])
        assert task.evaluate(conversation, f"```python\n{solution}\n```"), prompt
        assert not task.evaluate(conversation, prompt + "    raise NotImplementedError")
