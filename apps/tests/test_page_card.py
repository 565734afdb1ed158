"""The chat page's card of a model, out of what a run leaves behind."""

import json
from pathlib import Path

import pytest
from nanochat_apps.reports.page_card import MAX_POINTS, page_card, training_command
from nanochat_apps.runtime import paths


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    directory = paths.step_dir("sft", "d2", 400)
    directory.mkdir(parents=True)
    meta = {"stage": "sft", "step": 400, "scores": {"val_bpb": 1.23456}, "settings": {"mixture": "tinyworld"}}
    (directory / "meta.json").write_text(json.dumps(meta))
    (directory / "config.json").write_text(json.dumps({"n_layer": 2, "n_embd": 128}))
    lines = [{"step": step, "loss": 400.0 - step} for step in range(1, 401)]
    (directory.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_facts_and_a_thinned_curve_that_ends_where_the_run_did(checkpoint):
    card = page_card(checkpoint)
    assert card["facts"] | {"Tokens seen": None} == {
        "Stage": "sft",
        "Step": 400,
        "Layers": 2,
        "Width": 128,
        "Tokens seen": None,
        "val_bpb": 1.2346,
    }
    assert len(card["loss"]) == MAX_POINTS
    assert card["loss"][-1] == (400, 0.0)
    assert card["skills"] == []
    assert "suggestions" not in card
    assert "samples" not in card


def test_the_last_answers_of_reinforcement_learning(checkpoint):
    lines = [{"step": step, "text": f"answer {step}", "reward": 1.0} for step in range(1, 6)]
    (checkpoint.parent / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert page_card(checkpoint)["samples"] == ["answer 3", "answer 4", "answer 5"]


def test_the_quickstarts_skills_and_a_question_of_those_it_is_good_at(checkpoint, tmp_path):
    mistakes = [{"question": str(n), "answer": "1", "expected": "2"} for n in range(9)]
    skills = [
        {"name": "letter counts", "num_right": 3, "num_asked": 4, "mistakes": mistakes},
        {"name": "arithmetic with the tool", "num_right": 1, "num_asked": 4, "mistakes": []},
    ]
    (tmp_path / "d2").mkdir()
    (tmp_path / "d2/scores.json").write_text(json.dumps({"sft": skills}))
    card = page_card(checkpoint)
    assert [(skill["name"], skill["score"], len(skill["mistakes"])) for skill in card["skills"]] == [
        ("letter counts", 0.75, 4),
        ("arithmetic with the tool", 0.25, 0),
    ]
    assert card["suggestions"] == ["How many r are in strawberry?"]


def test_skills_of_an_evaluation_with_its_own_mistakes(checkpoint):
    def entry(question: str, answer: str, right: bool) -> dict:
        content = [{"type": "text", "text": "4"}]
        messages = [{"role": "user", "content": question}]
        return {"task": "sums", "messages": messages, "reference": content, "answers": [answer], "right": [right]}

    folder = paths.report_dir() / "chat_eval_sft_d2_step_000400"
    folder.mkdir(parents=True)
    lines = [{"subject": {}}, entry("2+2?", "5", False), entry("1+3?", "4", True)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = page_card(checkpoint)
    mistake = {"question": "2+2?", "answer": "5", "expected": "4"}
    assert card["skills"] == [{"name": "sums", "score": 0.5, "mistakes": [mistake], "example": "1+3?"}]
    assert card["suggestions"] == ["1+3?"]


def test_the_command_trains_on_the_same_mixture_and_the_corrections(checkpoint):
    command = "uv run chat-sft --mixture tinyworld,my-chats.jsonl:10"
    assert training_command(checkpoint, Path("my-chats.jsonl")) == command
