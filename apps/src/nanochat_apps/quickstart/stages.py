"""The stages of the quickstart: each makes its part, or finds it made (None); False if a signal stopped it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from nanochat_data import open_text_source
from nanochat_data.synthetic import Split, TinyWorld
from nanochat_data.tasks import TinyWorldTask
from nanochat_tokenizer import train_tokenizer
from nanochat_train import list_steps, read_metrics

from nanochat_apps import base_train, chat_rl, chat_sft
from nanochat_apps.quickstart.evaluation import MAX_ANSWER_TOKENS
from nanochat_apps.quickstart.sizes import BATCH_TOKENS, SEQUENCE_LEN, Size
from nanochat_apps.quickstart.watch import Watch
from nanochat_apps.runtime import paths, pretraining
from nanochat_apps.runtime.flags.quickstart import Settings

SPLITS: tuple[Split, Split] = ("train", "test")
RATE_BOOST = 10.0
"""The recipe's rates suit long runs; scaled down for a batch this small they would learn too slowly in minutes, and looking up
and copying, which everything else needs, would hardly begin."""
SFT_LR_FRAC = 1.0 / RATE_BOOST
"""Of the boosted rates, which are not scaled by the batch here: about those that pretraining has."""
RL_SKILLS = ("long_stories", "arithmetic")
"""Rewarded: stories of three actions, which fine-tuning leaves out, and what they should not make it forget."""
WATCHED_PER_SKILL = 25
TRIAL_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """What the stages share."""

    settings: Settings
    size: Size
    folder: Path
    tag: str

    def data(self) -> bool | None:
        if (self.folder / "data" / "valid.jsonl").exists():
            return None
        world = TinyWorld(self.settings.seed)
        counts = self.size.num_documents, self.size.num_documents // 50
        for split, name, count in zip(SPLITS, ("train", "valid"), counts, strict=True):
            lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
            write_lines(self.folder / "data" / f"{name}.jsonl", lines)
        return True

    def tokenizer(self) -> bool | None:
        directory = self.folder / "tokenizer"
        if (directory / "tokenizer.json").exists():
            return None
        source = open_text_source(self.folder / "data", split="train")
        train_tokenizer(source.documents(), vocab_size=self.size.vocab_size).save(directory)
        return True

    @property
    def num_tokens(self) -> int:
        """Of pretraining and fine-tuning."""
        return (self.size.base_steps + self.size.sft_steps) * BATCH_TOKENS

    def base_settings(self) -> base_train.Settings:
        steps, done = self.size.base_steps, self._last_step("base")
        return base_train.Settings(
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
            warmdown_ratio=0.3,
            final_lr_frac=0.5,
            eval_every=max(steps // 4, 1),
            eval_tokens=50_000,
            sample_every=0,
            save_every=max(steps // 3, 1),
            keep=1,
            model_tag=self.tag,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            compile="off" if self.settings.smoke else "on",
            seed=self.settings.seed,
        )

    def base(self) -> bool | None:
        if self._last_step("base") == self.size.base_steps:
            return None
        return base_train.pretrain(self.base_settings(), watch=self._watch("base"))

    def sft(self) -> bool | None:
        steps, done = self.size.sft_steps, self._last_step("sft")
        if done == steps:
            return None
        settings = chat_sft.Settings(
            mixture="tinyworld",
            model_tag=self.tag,
            num_iterations=steps,
            init_lr_frac=SFT_LR_FRAC,
            eval_every=max(steps // 5, 1),
            save_every=max(steps // 5, 1),
            keep=1,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            compile="off" if self.settings.smoke else "on",
            seed=self.settings.seed,
        )
        task = TinyWorldTask(size=self.size.num_conversations, split="train", seed=self.settings.seed)
        return chat_sft.fine_tune(settings, task, watch=self._watch("sft"))

    def rl(self) -> bool | None:
        steps, done = self.size.rl_steps, self._last_step("rl")
        if done == steps:
            return None
        settings = chat_rl.Settings(
            model_tag=self.tag,
            num_iterations=steps,
            examples_per_step=16,
            num_samples=8,
            device_batch_size=8,
            max_new_tokens=MAX_ANSWER_TOKENS,
            init_lr_frac=0.06,
            eval_every=max(steps // 3, 1),
            eval_examples=self.size.questions_per_skill,
            eval_samples=1,
            save_every=max(steps // 3, 1),
            keep=1,
            resume_from_step=0 if done else None,
            device_type=self.settings.device_type,
            seed=self.settings.seed,
        )
        train_task, test_task = (
            TinyWorldTask(size=self.size.num_conversations, split=split, skill=skills, seed=self.settings.seed + 1)
            for split, skills in zip(SPLITS, (RL_SKILLS, "long_stories"), strict=True)
        )
        return chat_rl.reinforce(settings, train_task, test_task)

    def step_s(self) -> float | None:
        """Median seconds of a training step, as this run measured them; None before there are any."""
        metrics = read_metrics(paths.checkpoints_root("base") / self.tag / "metrics.jsonl")
        seconds = [row["step_s"] + row["data_wait_s"] for row in metrics if "step_s" in row]
        return statistics.median(seconds) if seconds else None

    def trial_step_s(self, where: torch.device, dtype: torch.dtype) -> float:
        """Seconds of a training step of this size on this machine, the fastest of a few.

        They are not compiled and leave out the optimizer: compiling gains about what it takes.
        """
        _, model = pretraining.build(self.base_settings(), self.size.vocab_size, where, dtype)
        ids = torch.randint(self.size.vocab_size, (BATCH_TOKENS // SEQUENCE_LEN, SEQUENCE_LEN), device=where)
        seconds = []
        for _ in range(TRIAL_STEPS):
            start = time.perf_counter()
            loss = model.loss(ids, ids)
            torch.autograd.backward(loss)
            float(loss.detach())  # reading a value waits for the device
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def samples_file(self, stage: str) -> Path:
        return self.folder / f"{stage}_samples.jsonl"

    def _watch(self, stage: str) -> Watch:
        return Watch(
            chats=stage == "sft",
            samples_file=self.samples_file(stage),
            questions_per_skill=min(WATCHED_PER_SKILL, self.size.questions_per_skill),
            seed=self.settings.seed,
        )

    def _last_step(self, source: str) -> int:
        """The last complete step, 0 where there is none."""
        return max(list_steps(paths.checkpoints_root(source) / self.tag), default=0)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    temporary.replace(path)
