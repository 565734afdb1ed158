"""chat-eval on a tiny model of noise: every kind of task to its end, stopped and gone on with, garbage, and wrong flags."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import nanochat_engine
import pytest
import torch
from nanochat_apps import chat_eval
from nanochat_apps.adapters.eval_model import EngineGenerator, LetterScorer, make_loglikelihood
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_engine import SamplingParams
from nanochat_model import GPT
from nanochat_tokenizer import render_for_completion
from nanochat_train.json_lines import read_json_lines

ARC = [
    {"question": f"Which {i}?", "choices": {"text": ["x", "yy", "zzz"], "label": ["A", "B", "C"]}, "answerKey": "ABC"[i % 3]}
    for i in range(10)
]  # fmt: skip
MMLU = [{"question": f"How {i}?", "subject": "s", "choices": ["1", "2", "3", "4"], "answer": i % 4} for i in range(6)]
GSM8K = [{"question": f"{i} + 1?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(5)]
HUMANEVAL = [
    {
        "prompt": f"def f{i}():\n",
        "canonical_solution": f"    return {i}\n",
        "entry_point": f"f{i}",
        "test": f"def check(candidate):\n    assert candidate() == {i}\n",
    }
    for i in range(2)
]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, and a model of noise that has room for them."""
    root = tmp_path / "mirror"
    files = {
        "arc/ARC-Easy/test.jsonl": ARC,
        "arc/ARC-Challenge/test.jsonl": ARC[::-1],
        "mmlu/test.jsonl": MMLU,
        "gsm8k/test.jsonl": GSM8K,
    }
    for name, rows in files.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "humaneval").mkdir()
    with gzip.open(root / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in HUMANEVAL))
    monkeypatch.setenv("NANOCHAT_DATA_MIRROR", str(root))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    save_tiny_checkpoint(tmp_path / "base" / "chatsft_checkpoints" / "d2", sequence_len=256)
    return root


@pytest.fixture
def settings(mirror: Path) -> chat_eval.Settings:
    return chat_eval.Settings(max_new_tokens=12, device_type="cpu", dtype="float32", batch_size=3, num_rows=4)


def transcript(tmp_path: Path, task: str) -> list[dict]:
    path = tmp_path / "base" / "report" / "chat_eval_sft_d2_step_000001" / f"{task}.jsonl"
    return [line for line in read_json_lines(path) if "task" in line]


def test_all_tasks_run_to_the_end_and_make_chatcore(settings, tmp_path, capsys):
    assert chat_eval.evaluate(settings) == 0
    said = capsys.readouterr().out.splitlines()
    accuracies = {line.split()[0]: float(line.split()[1].rstrip("%")) / 100 for line in said[1:] if " centred " in line}
    assert list(accuracies) == ["arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval"]
    assert accuracies["gsm8k"] == accuracies["humaneval"] == 0.0, "noise solves nothing"
    summary = json.loads((tmp_path / "base/report/chat_eval_sft_d2_step_000001/summary.json").read_text())
    expected = sum((task["accuracy"] - task["baseline"]) / (1 - task["baseline"]) for task in summary["tasks"]) / 5
    assert summary["chat_core"] == pytest.approx(expected)
    assert f"ChatCORE {expected:.4f}" in said
    assert len(transcript(tmp_path, "arc-easy")) == 10
    first = next(entry for entry in transcript(tmp_path, "gsm8k") if entry["index"] == 0)
    assert first["messages"][0]["role"] == "user"
    assert len(first["answers"]) == 1
    assert (first["right"], first["num_tokens"]) == ([False], [12])


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(settings, tmp_path, capsys, monkeypatch):
    settings = replace(settings, task_name="GSM8K | arc-easy", num_samples=3, temperature=1.0)
    assert chat_eval.evaluate(settings) == 0
    whole = capsys.readouterr().out
    answers = {entry["index"]: entry["answers"] for entry in transcript(tmp_path, "gsm8k")}
    assert all(len(set(samples)) == 3 for samples in answers.values()), "samples of a problem must differ"
    for task, kept in (("gsm8k", 3), ("arc-easy", 4)):
        path = tmp_path / "base/report/chat_eval_sft_d2_step_000001" / f"{task}.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:kept]) + lines[kept][:9])
    asked = []
    real = EngineGenerator.__call__
    monkeypatch.setattr(
        EngineGenerator, "__call__", lambda self, problems: real(self, (asked.append(p[0]) or p for p in problems))
    )
    assert chat_eval.evaluate(settings) == 0
    assert len(asked) == 3
    assert capsys.readouterr().out == whole
    assert {entry["index"]: entry["answers"] for entry in transcript(tmp_path, "gsm8k")} == answers
    assert chat_eval.evaluate(replace(settings, max_problems=2)) == 0
    assert " of     2 " in capsys.readouterr().out
    assert len(asked) == 3, "the first problems are there already"
    assert chat_eval.evaluate(replace(settings, seed=1)) == 0
    assert len(asked) == 8, "another seed is another question"


def test_many_samples_in_any_company_are_those_of_one_problem_alone(settings, tmp_path):
    checkpoint = tmp_path / "base/chatsft_checkpoints/d2/step_000001"
    task = chat_eval.load_task("gsm8k")
    problems = [(index, task.conversation(index)) for index in range(5)]
    params = SamplingParams(n=3, max_tokens=9, temperature=1.0, top_k=0)
    several, alone = (
        EngineGenerator(nanochat_engine.load(checkpoint, dtype=torch.float32, max_rows=rows), params) for rows in (7, 1)
    )
    together = dict(several(problems))
    assert sorted(together) == [0, 1, 2, 3, 4]
    for problem in problems:
        assert dict(alone([problem])) == {problem[0]: together[problem[0]]}


def test_problems_are_asked_for_as_rows_need_them(settings, tmp_path):
    engine = nanochat_engine.load(tmp_path / "base/chatsft_checkpoints/d2/step_000001", max_rows=2)
    task, asked = chat_eval.load_task("gsm8k"), []

    def problems():
        for index in range(100):
            asked.append(index)
            yield index, task.conversation(index % 5)

    answers = EngineGenerator(engine, SamplingParams(n=1, max_tokens=2))(problems())
    next(answers)
    assert 2 < len(asked) < 30
    assert [index for index, _ in answers] == list(range(1, 100))


def test_letters_are_compared_at_the_answers_first_token(settings, tmp_path):
    engine = nanochat_engine.load(tmp_path / "base/chatsft_checkpoints/d2/step_000001", dtype=torch.float32)
    task = chat_eval.load_task("arc-easy")
    conversations = [task.conversation(index) for index in range(10)]
    letters = [task.letters(index) for index in range(10)]
    for batch_tokens in (1, 200, 10_000):
        loglikelihood = make_loglikelihood(engine.model, engine.tokenizer, batch_tokens=batch_tokens)
        chooser = LetterScorer(engine, loglikelihood, max_tokens=1000)
        chosen = chooser(conversations, letters)
        for conversation, names, logprobs in zip(conversations, letters, chosen, strict=True):
            ids = render_for_completion(engine.tokenizer, conversation)
            with torch.inference_mode():
                plain = engine.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert logprobs == pytest.approx([float(plain[ord(name)]) for name in names], abs=1e-4)
    with pytest.raises(ValueError, match="the answer 'AB' is 2 tokens of this tokenizer, it must be one"):
        chooser(conversations[:1], [["AB"]])


def test_problems_that_do_not_fit_are_wrong_and_said_to_be(settings, tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "base/chatsft_checkpoints/d2", sequence_len=8)
    assert chat_eval.evaluate(replace(settings, task_name="gsm8k|arc-easy")) == 0
    said = capsys.readouterr().out
    assert "5 problems without an answer" in said
    assert "10 problems without an answer" in said
    assert {tuple(entry["finished"]) for entry in transcript(tmp_path, "gsm8k")} == {("context length exceeded",)}


def test_a_model_of_nan_gets_a_clear_result(settings, tmp_path, capsys, monkeypatch):
    real = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda self, *args, **kwargs: real(self, *args, **kwargs) * math.nan)
    assert chat_eval.evaluate(replace(settings, task_name="arc-easy,gsm8k")) == 0
    assert "10 problems without an answer: too long, or no finite log probabilities" in capsys.readouterr().out
    assert {entry["right"][0] for entry in transcript(tmp_path, "arc-easy")} == {False}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"test.jsonl holds no row"),
        ('{"question": "?"}\n', r"test.jsonl, line 1: no text in the field 'answer'"),
        ("{\n", r"test.jsonl, line 1 is not JSON"),
    ],
)
def test_empty_and_malformed_files_are_one_line(settings, mirror, text, complaint):
    (mirror / "gsm8k" / "test.jsonl").write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        chat_eval.evaluate(replace(settings, task_name="gsm8k"))
    assert "\n" not in str(caught.value)


def test_programs_are_not_run_without_walls_unless_by_request(settings, monkeypatch, capsys):
    monkeypatch.setattr("nanochat_data.sandbox.landlock.abi", lambda: 0)
    settings = replace(settings, task_name="humaneval")
    with pytest.raises(RuntimeError, match=r"this machine lacks Landlock .* \(--unsafe-code\) runs them without"):
        chat_eval.evaluate(settings)
    assert chat_eval.evaluate(replace(settings, unsafe_code=True)) == 0
    assert "humaneval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"task_name": "chess"}, "--task-name chess: unknown task; choose from arc-challenge, arc-easy"),
        ({"task_name": " | "}, "--task-name is empty"),
        ({"source": "rl", "task_name": "gsm8k"}, "no complete rl checkpoint"),
        ({"model_tag": "d9", "task_name": "gsm8k"}, "no complete sft checkpoint with tag d9"),
    ],
)
def test_wrong_flags_are_named(settings, flags, complaint):
    with pytest.raises(UsageError, match=complaint):
        chat_eval.evaluate(replace(settings, **flags))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"num_samples": 4}, "--num-samples 4 needs a --temperature above 0"),
        ({"max_problems": 0}, "--max-problems 0 must be at least 1"),
        ({"temperature": 3.0}, "--temperature 3.0 must be between 0 and 2"),
        ({"top_k": -1}, "--top-k -1 must be at least 0"),
    ],
)
def test_values_out_of_range_are_named(flags, complaint):
    with pytest.raises(ValueError, match=complaint):
        chat_eval.Settings(**flags)
