"""The card that the chat page shows of its model: what it is, how it learnt, what it is good at and where it errs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from nanochat_serve import collect_corrections, describe_model
from nanochat_train import load_meta, read_metrics

from nanochat_apps.runtime import paths

MAX_POINTS = 200
"""Points of the loss curve, evenly over its steps."""
MAX_MISTAKES = 4
"""Mistakes told of each skill."""
MAX_SAMPLES = 3
"""Of the answers that chat-rl kept, the last ones."""
GOOD = 0.5
"""A skill with this share of right answers is suggested."""
EXAMPLES = {
    "arithmetic with the tool": "What is 37 times 12?",
    "letter counts": "How many r are in strawberry?",
    "identity and small talk": "Hello! What is your name?",
}
"""A question of each of the quickstart's skills, whose scores keep mistakes only."""


def described(app: web.Application, checkpoint: Path, collect: Path | None) -> web.Application:
    """The server, whose page now has the model's card, as far as there is one, and the file for corrections."""
    with suppress(OSError, ValueError, LookupError):  # whatever is wrong with a card, the model can be served
        describe_model(app, page_card(checkpoint))
    if collect is not None:
        collect_corrections(app, collect, training_command(checkpoint, collect))
    return app


def page_card(checkpoint: Path) -> dict[str, Any]:
    """What is found of it beside the checkpoint and in the reports; what is missing stays out."""
    meta, config = load_meta(checkpoint), json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    facts = {
        "Stage": meta.get("stage"),
        "Step": meta.get("step"),
        "Layers": config.get("n_layer"),
        "Width": config.get("n_embd"),
        "Tokens seen": meta.get("tokens_seen"),
        **{name: round(score, 4) for name, score in meta.get("scores", {}).items() if isinstance(score, float)},
    }
    losses = [
        (line["step"], line["loss"]) for line in read_metrics(checkpoint.parent / "metrics.jsonl") if "loss" in line
    ]
    skills = list(_quickstart_skills(checkpoint, meta)) or list(_evaluated_skills(checkpoint, meta))
    good = sorted((skill for skill in skills if skill["score"] >= GOOD), key=lambda skill: -skill["score"])
    suggestions = [skill["example"] for skill in good if skill["example"]][:3]
    answers = [line["text"] for line in read_metrics(checkpoint.parent / "samples.jsonl") if "text" in line]
    optional = {"suggestions": suggestions, "samples": answers[-MAX_SAMPLES:]}
    return {"facts": facts, "loss": _thinned(losses), "skills": skills} | {k: own for k, own in optional.items() if own}


def training_command(checkpoint: Path, file: Path) -> str:
    """How to fine-tune again with a file of conversations, each of them ten times."""
    settings = load_meta(checkpoint).get("settings", {})
    mixture = ",".join([*filter(None, [settings.get("mixture")]), f"{file}:10"])
    tag = settings.get("model_tag")
    return shlex.join(["uv", "run", "chat-sft", "--mixture", mixture, *(["--model-tag", tag] if tag else [])])


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The last point is kept."""
    stride = -(-len(points) // MAX_POINTS) or 1
    return list(points[::-1][::stride][::-1])


def _quickstart_skills(checkpoint: Path, meta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    path = paths.base_dir() / checkpoint.parent.name / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for skill in scores.get(meta.get("stage"), []):
        mistakes, score = skill["mistakes"][:MAX_MISTAKES], skill["num_right"] / skill["num_asked"]
        yield {"name": skill["name"], "score": score, "mistakes": mistakes, "example": EXAMPLES.get(skill["name"])}


def _evaluated_skills(checkpoint: Path, meta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """From the last `chat-eval` of this checkpoint, which keeps every answer."""
    name = f"chat_eval_{meta.get('stage')}_{checkpoint.parent.name}_{checkpoint.name}"
    for path in sorted((paths.report_dir() / name).glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        entries = [entry for entry in lines if {"messages", "answers", "right"} <= entry.keys()]
        if not entries:
            continue
        wrong = [entry for entry in entries if not any(entry["right"])][:MAX_MISTAKES]
        mistakes = [
            {"question": _asked(entry), "answer": entry["answers"][0], "expected": _text(entry["reference"])}
            for entry in wrong
        ]
        score = sum(sum(entry["right"]) / len(entry["right"]) for entry in entries) / len(entries)
        example = next((_asked(entry) for entry in entries if all(entry["right"])), None)
        yield {"name": path.stem, "score": score, "mistakes": mistakes, "example": example}


def _asked(entry: Mapping[str, Any]) -> str:
    return _text(entry["messages"][-1]["content"])


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
