"""The stages of quickstart, each skipped when its result is there and gone on with when it was interrupted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_data import open_text_source
from nanochat_data.synthetic import Split, TinyWorld
from nanochat_data.tasks import TinyWorldTask
from nanochat_engine import Engine, load
from nanochat_tokenizer import train_tokenizer
from nanochat_train import list_steps

from nanochat_apps import base_train, chat_rl, chat_sft, chat_web
from nanochat_apps.quickstart import evaluation, report
from nanochat_apps.quickstart.evaluation import MAX_ANSWER_TOKENS, Score
from nanochat_apps.runtime import cli, device, paths, roofline
from nanochat_apps.runtime.flags.quickstart import Settings

TAG = "quickstart"
SEQUENCE_LEN = 256
BATCH_TOKENS = 4096
FLOPS_PER_TOKEN = 22e6
"""Of the model below, to say beforehand how long it will take."""
SPLITS: tuple[Split, Split] = ("train", "test")
STAGES = ("base", "sft", "rl")
USUAL_MFU = 0.4
OTHER_MINUTES = 4.0
"""Compiling, sampling for reinforcement learning, and evaluations."""
RATE_BOOST = 3.4
"""The recipe's rates suit long runs; scaled down for a batch this small they would learn too slowly in minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything."""

    depth: int
    vocab_size: int
    num_documents: int
    base_steps: int
    sft_steps: int
    num_conversations: int
    rl_steps: int
    questions_per_skill: int


FULL = Size(
    depth=4,
    vocab_size=2048,
    num_documents=30_000,
    base_steps=250,
    sft_steps=750,
    num_conversations=200_000,
    rl_steps=24,
    questions_per_skill=100,
)
SMOKE = Size(
    depth=2,
    vocab_size=512,
    num_documents=1_000,
    base_steps=12,
    sft_steps=12,
    num_conversations=2_000,
    rl_steps=2,
    questions_per_skill=4,
)


class Quickstart:
    """Runs the stages in order and keeps their timings for the report."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.size = SMOKE if settings.smoke else FULL
        self.tag = f"{TAG}-smoke" if settings.smoke else TAG
        self.folder = paths.base_dir() / self.tag
        self.timings_file = self.folder / "timings.json"

    def run(self) -> bool:
        """All stages; False if a signal stopped one (the same command resumes it)."""
        if self.settings.fresh:
            for made in (self.folder, *(paths.checkpoints_root(stage) / self.tag for stage in STAGES)):
                shutil.rmtree(made, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._announce()
        if not (self._timed("data", self._data) and self._timed("tokenizer", self._tokenizer)):
            return False
        if not (self._timed("base", self._base) and self._timed("sft", self._sft) and self._timed("rl", self._rl)):
            return False
        self._evaluate_and_report()
        return True

    def _announce(self) -> None:
        """What will happen and how long it should take, from this machine's measured speed."""
        where = device.choose_device(self.settings.device_type)
        dtype = device.choose_dtype(where)
        flops = roofline.measure_matmul_flops(where, dtype)
        tokens = (self.size.base_steps + self.size.sft_steps) * BATCH_TOKENS
        minutes = tokens * FLOPS_PER_TOKEN / (USUAL_MFU * flops) / 60 + OTHER_MINUTES
        why = "" if device.has_fast_bf16(where) else "; this CPU has no fast bf16"
        say(f"quickstart: everything goes to {self.folder.parent}")
        say(f"training {tokens / 1e6:.1f} M tokens on {where.type} in {str(dtype).removeprefix('torch.')}{why}")
        say(f"expect about {max(1, round(minutes))} minutes; Ctrl-C stops, and the same command resumes")

    def _timed(self, stage: str, work: Any) -> bool:
        """Runs a stage and adds its seconds to the ledger, which outlives interruptions."""
        start = time.perf_counter()
        finished: bool | None = work()
        if finished is None:
            say(f"{stage}: done already")
            return True
        timings = self.timings()
        timings[stage] = round(timings.get(stage, 0.0) + time.perf_counter() - start, 1)
        self.timings_file.write_text(json.dumps(timings))
        return finished

    def timings(self) -> dict[str, float]:
        """Seconds by stage."""
        loaded: dict[str, float] = json.loads(self.timings_file.read_text()) if self.timings_file.exists() else {}
        return loaded

    def _data(self) -> bool | None:
        if (self.folder / "data" / "valid.jsonl").exists():
            return None
        world = TinyWorld(self.settings.seed)
        counts = self.size.num_documents, self.size.num_documents // 50
        for split, name, count in zip(SPLITS, ("train", "valid"), counts, strict=True):
            lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
            write_lines(self.folder / "data" / f"{name}.jsonl", lines)
        say(f"data: {self.size.num_documents:,} generated documents")
        return True

    def _tokenizer(self) -> bool | None:
        directory = self.folder / "tokenizer"
        if (directory / "tokenizer.json").exists():
            return None
        source = open_text_source(self.folder / "data", split="train")
        train_tokenizer(source.documents(), vocab_size=self.size.vocab_size).save(directory)
        say(f"tokenizer: {self.size.vocab_size} tokens")
        return True

    def _base(self) -> bool | None:
        steps = self.size.base_steps
        done = last_step("base", self.tag)
        if done == steps:
            return None
        settings = base_train.Settings(
            data=self.folder / "data",
            tokenizer=self.folder / "tokenizer",
            depth=self.size.depth,
            head_dim=64,
            max_seq_len=SEQUENCE_LEN,
            window_pattern="L",
            num_iterations=steps,
            device_batch_size=BATCH_TOKENS // SEQUENCE_LEN,
            total_batch_size=BATCH_TOKENS,
            embedding_lr=0.3 * RATE_BOOST,
            unembedding_lr=0.008 * RATE_BOOST,
            matrix_lr=0.02 * RATE_BOOST,
            scalar_lr=0.5 * RATE_BOOST,
            weight_decay=0.02,
            eval_every=max(steps // 2, 1),
            eval_tokens=200_000,
            sample_every=0,
            save_every=max(steps // 5, 1),
            keep=1,
            model_tag=self.tag,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            compile="off" if self.settings.smoke else "on",
            seed=self.settings.seed,
        )
        return base_train.pretrain(settings)

    def _sft(self) -> bool | None:
        steps = self.size.sft_steps
        done = last_step("sft", self.tag)
        if done == steps:
            return None
        settings = chat_sft.Settings(
            mixture="tinyworld",
            model_tag=self.tag,
            num_iterations=steps,
            init_lr_frac=0.3 / RATE_BOOST,
            eval_every=max(steps // 3, 1),
            save_every=max(steps // 10, 1),
            keep=1,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            compile="off" if self.settings.smoke else "on",
            seed=self.settings.seed,
        )
        task = TinyWorldTask(size=self.size.num_conversations, split="train", seed=self.settings.seed)
        return chat_sft.fine_tune(settings, task)

    def _rl(self) -> bool | None:
        steps = self.size.rl_steps
        done = last_step("rl", self.tag)
        if done == steps:
            return None
        settings = chat_rl.Settings(
            model_tag=self.tag,
            num_iterations=steps,
            examples_per_step=16,
            num_samples=8,
            device_batch_size=8,
            max_new_tokens=MAX_ANSWER_TOKENS,
            init_lr_frac=0.1,
            eval_every=steps,
            eval_examples=self.size.questions_per_skill,
            eval_samples=4,
            save_every=max(steps // 3, 1),
            keep=1,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            seed=self.settings.seed,
        )
        train_task, test_task = (
            TinyWorldTask(
                size=self.size.num_conversations,
                split=split,
                skill=("arithmetic", "letters"),
                seed=self.settings.seed + 1,
            )
            for split in SPLITS
        )
        return chat_rl.reinforce(settings, train_task, test_task)

    def _evaluate_and_report(self) -> None:
        where = device.choose_device(self.settings.device_type)
        engines = {
            stage: load(paths.find_checkpoint(stage, self.tag), device=where, dtype=device.choose_decode_dtype(where))
            for stage in ("sft", "rl")
        }
        scores = self._scores(engines)
        for before, after in zip(scores["sft"], scores["rl"], strict=True):
            say(f"  {after.name:<40} {after.num_right:>3} of {after.num_asked}   before RL: {before.num_right}")
        dialogues = evaluation.sample_dialogues(engines["rl"])
        for dialogue in dialogues:
            say("")
            for role, text in dialogue:
                say(f"  {role}: {text}")
        page = report.write(
            self.folder / "report",
            scores=scores,
            timings=self.timings(),
            dialogues=dialogues,
            size=asdict(self.size),
            metrics={stage: paths.checkpoints_root(stage) / self.tag / "metrics.jsonl" for stage in STAGES},
        )
        say(f"\nreport: {page}")
        say(f"talk to it:  uv run chat-cli -i rl -g {self.tag}")
        say(f"serve it:    uv run chat-web -i rl -g {self.tag} --host 127.0.0.1 --port {self.settings.port}")

    def _scores(self, engines: Mapping[str, Engine]) -> dict[str, list[Score]]:
        """Of the model before and after reinforcement learning, measured once and kept."""
        file = self.folder / "scores.json"
        if file.exists():
            say("evaluation: done already")
            kept = json.loads(file.read_text())
            return {stage: [evaluation.Score(**score) for score in scores] for stage, scores in kept.items()}
        start = time.perf_counter()
        scores = {
            stage: evaluation.evaluate(engine, num_questions=self.size.questions_per_skill, seed=self.settings.seed)
            for stage, engine in engines.items()
        }
        file.write_text(json.dumps({stage: [asdict(score) for score in made] for stage, made in scores.items()}))
        timings = {**self.timings(), "evaluation": round(time.perf_counter() - start, 1)}
        self.timings_file.write_text(json.dumps(timings))
        return scores


def last_step(source: str, tag: str) -> int:
    """The last complete step of a tag, 0 where there is none."""
    return max(list_steps(paths.checkpoints_root(source) / tag), default=0)


def write_lines(path: Path, lines: Any) -> None:
    """Writes a file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    temporary.replace(path)


def say(text: str) -> None:
    print(text, flush=True)


def start(settings: Settings) -> int:
    """Runs the stages, and the server if asked."""
    quickstart = Quickstart(settings)
    if not quickstart.run():
        return cli.INTERRUPTED
    if settings.serve:
        web = chat_web.Settings(source="rl", model_tag=quickstart.tag, host="127.0.0.1", port=settings.port)
        return chat_web.serve(web) or 0
    return 0
