"""Watching the model learn: at every evaluation it answers the same few questions, and a few held-out ones of each skill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nanochat_engine import Engine
from nanochat_model import GPT, prepare_for_inference
from nanochat_tokenizer import Tokenizer, render_for_completion
from nanochat_train import Evaluated, read_metrics

from nanochat_apps.quickstart import evaluation
from nanochat_apps.runtime import device

MAX_ROWS = 64
"""Answers that are decoded side by side."""
ANSWER_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Called at each evaluation of a stage; a base model continues each question as a page of questions would."""

    chats: bool
    samples_file: Path
    questions_per_skill: int
    seed: int

    def __call__(self, model: GPT, tokenizer: Tokenizer, step: int) -> Evaluated:
        """The answers for people, and the share of right ones by skill, as `skill/<name>`."""
        engine = Engine(
            prepare_for_inference(model, dtype=device.choose_decode_dtype(model.device)),
            tokenizer,
            render_chat=lambda messages: render_for_completion(tokenizer, {"messages": messages}),
            max_rows=MAX_ROWS,
        )
        answers = self._answers(engine)
        earlier = [sample for sample in read_metrics(self.samples_file) if sample["step"] < step]
        samples = [*earlier, {"step": step, "answers": answers}]
        self.samples_file.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
        width = max(map(len, evaluation.WATCHED))
        board = [f"  {q:<{width}}  {a}" for q, a in zip(evaluation.WATCHED, answers, strict=True)]
        return Evaluated(self._scores(engine), board=[f"step {step}", *board])

    def _answers(self, engine: Engine) -> list[str]:
        if self.chats:
            played = evaluation.play(engine, [(question,) for question in evaluation.WATCHED])
            texts = [evaluation.shown(answers[0]) for answers in played]
        else:
            prompts = [f"{question}\n" for question in evaluation.WATCHED]
            completed = engine.complete(prompts, max_tokens=ANSWER_TOKENS, temperature=0.0, stop=["\n"])
            texts = [completion.text for completion in completed]
        return [" ".join(text.split())[:100] for text in texts]

    def _scores(self, engine: Engine) -> dict[str, float]:
        if not self.chats:
            return {}
        skills = [skill for skill in evaluation.SKILLS if skill != "long_stories"]
        scores = evaluation.evaluate(engine, num_questions=self.questions_per_skill, seed=self.seed + 1, skills=skills)
        return {f"skill/{skill}": score.share for skill, score in zip(skills, scores, strict=True)}
