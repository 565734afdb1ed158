"""quickstart: the stages in order, each skipped when its result is there and resumed when it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from nanochat_engine import Engine, load

from nanochat_apps import chat_cli, chat_web
from nanochat_apps.quickstart import evaluation, report
from nanochat_apps.quickstart.evaluation import Score
from nanochat_apps.quickstart.sizes import FULL, SMOKE, Size, sized
from nanochat_apps.quickstart.stages import Stages
from nanochat_apps.runtime import cli, device, paths
from nanochat_apps.runtime.flags.common import Source
from nanochat_apps.runtime.flags.quickstart import Settings

TAG = "quickstart"
STAGES = ("base", "sft", "rl")
MAX_ROWS = 64
"""Answers that are decoded side by side."""


class Quickstart:
    """Runs the stages in order and keeps their timings for the report."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tag = f"{TAG}-smoke" if settings.smoke else TAG
        self.folder = paths.base_dir() / self.tag
        self.timings_file = self.folder / "timings.json"

    def run(self) -> bool:
        """All stages; False if a signal stopped one (the same command resumes it)."""
        if self.settings.fresh:
            for made in (self.folder, *(paths.checkpoints_root(stage) / self.tag for stage in STAGES)):
                shutil.rmtree(made, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.base_dir() / "compiled"))
        stages = self._stages()
        for name in ("data", "tokenizer", *STAGES):
            if not self._timed(name, getattr(stages, name)):
                return False
            if name == "base" and (step_s := stages.step_s()):
                minutes = replace(stages.size, base_steps=0).minutes(step_s)
                say(f"about {minutes:.1f} minutes to go at the speed that pretraining had")
        self._evaluate_and_report(stages)
        return True

    def _stages(self) -> Stages:
        """Says what will happen and how long it takes at this machine's measured speed; the size is chosen once and kept."""

        def stages(size: Size) -> Stages:
            return Stages(settings=self.settings, size=size, folder=self.folder, tag=self.tag)

        where = device.choose_device(self.settings.device_type)
        dtype = device.choose_dtype(where)
        size = SMOKE if self.settings.smoke else FULL
        step_s = stages(size).trial_step_s(where, dtype)
        file = self.folder / "size.json"
        if file.exists():
            size = Size(**json.loads(file.read_text()))
            if self.settings.minutes:
                say("the sizes are those of the run that is there; --fresh chooses them anew")
        elif self.settings.minutes:
            size = sized(float(self.settings.minutes), step_s)
        file.write_text(json.dumps(asdict(size)))
        tokens = stages(size).num_tokens
        why = "" if device.has_fast_bf16(where) else "; this processor has no fast bf16"
        say(f"quickstart: everything goes to {self.folder.parent}")
        say(f"training {tokens / 1e6:.1f} M tokens on {where.type} in {str(dtype).removeprefix('torch.')}{why}")
        minutes = size.minutes(step_s)
        say(f"expect about {max(1, round(minutes))} minutes; Ctrl-C stops, and the same command resumes")
        return stages(size)

    def _timed(self, stage: str, work: Callable[[], bool | None]) -> bool:
        """Runs a stage and adds its seconds to the ledger, which outlives interruptions."""
        start = time.perf_counter()
        finished = work()
        if finished is None:
            say(f"{stage}: done already")
            return True
        self._spent(stage, time.perf_counter() - start)
        return finished

    def _spent(self, stage: str, seconds: float) -> None:
        timings = self.timings()
        timings[stage] = round(timings.get(stage, 0.0) + seconds, 1)
        self.timings_file.write_text(json.dumps(timings))

    def timings(self) -> dict[str, float]:
        """Seconds by stage."""
        loaded: dict[str, float] = json.loads(self.timings_file.read_text()) if self.timings_file.exists() else {}
        return loaded

    def _evaluate_and_report(self, stages: Stages) -> None:
        where = device.choose_device(self.settings.device_type)
        dtype = device.choose_decode_dtype(where)

        def engine(stage: Source) -> Engine:
            return load(paths.find_checkpoint(stage, self.tag), device=where, dtype=dtype, max_rows=MAX_ROWS)

        scores = self._scores(stages, engine)
        say("\n" + report.scoreboard(scores))
        dialogues = evaluation.sample_dialogues(engine("rl"))
        for dialogue in dialogues:
            say("")
            for role, text in dialogue:
                say(f"  {role}: {text}")
        page = report.write(
            self.folder / "report", scores=scores, dialogues=dialogues, timings=self.timings(), stages=stages
        )
        say(f"\nreport: {page}")
        say(f"talk to it:  uv run chat-cli -i rl -g {self.tag}")
        say(f"serve it:    uv run chat-web -i rl -g {self.tag} --host 127.0.0.1 --port {self.settings.port}")

    def _scores(self, stages: Stages, engine: Callable[[Source], Engine]) -> dict[str, list[Score]]:
        """After and before reinforcement learning (`rl`, `sft`), and out of distribution; measured once and kept."""
        file = self.folder / "scores.json"
        if file.exists():
            say("evaluation: done already")
            kept = json.loads(file.read_text())
            return {name: [evaluation.Score(**score) for score in scores] for name, scores in kept.items()}
        start, final = time.perf_counter(), engine("rl")
        evaluate = partial(evaluation.evaluate, num_questions=stages.size.questions_per_skill, seed=self.settings.seed)
        scores = {
            "rl": evaluate(final),
            "out_of_distribution": evaluation.evaluate_written(final, num_questions=stages.size.questions_per_skill),
            "sft": evaluate(engine("sft"), skills=evaluation.RL_SKILLS),
        }
        file.write_text(json.dumps({name: [asdict(score) for score in made] for name, made in scores.items()}))
        self._spent("evaluation", time.perf_counter() - start)
        return scores


def say(text: str) -> None:
    print(text, flush=True)


def start(settings: Settings) -> int:
    """Runs the stages, and then the server if asked, or the chat on a terminal."""
    quickstart = Quickstart(settings)
    if not quickstart.run():
        return cli.INTERRUPTED
    if settings.serve:
        web = chat_web.Settings(source="rl", model_tag=quickstart.tag, host="127.0.0.1", port=settings.port)
        return chat_web.serve(web) or 0
    if sys.stdin.isatty() and sys.stdout.isatty():
        return chat_cli.chat(chat_cli.Settings(source="rl", model_tag=quickstart.tag, temperature=0.0))
    return 0
