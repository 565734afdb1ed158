"""The folder of a run: whose checkpoints and metrics it holds, where a run resumes, and what a new one may not overwrite."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_train import state
from nanochat_train.checkpoints import (
    Writer,
    add_outcome,
    list_steps,
    load_meta,
    load_training_state,
    save_checkpoint,
    step_directory,
    verify_checkpoint,
)
from nanochat_train.progress import Progress


class RunFolder:
    """A run under `root`: a new one, or the one that is there, continued.

    A run that is there continues by itself where `settings` are the same (but for those that `may_change`), or from
    `resume_from_step` (0: its last) whatever they are. Any other run needs an empty folder, or `overwrite`: its steps then
    count as the newer, whatever their numbers. Raises `ValueError` where none of this holds, naming what is different.
    """

    def __init__(
        self,
        root: Path,
        *,
        settings: Mapping[str, Any],
        may_change: frozenset[str] = frozenset(),
        resume_from_step: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.root = root
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.metrics_file = root / "metrics.jsonl"
        self.resumed: Path | None = None
        """The checkpoint that this run continues from."""
        steps = list_steps(root)
        if resume_from_step is not None:
            every = list_steps(root, newest_run=False)
            if not steps or resume_from_step not in (0, *every):
                there = ", ".join(map(str, every)) or "none"
                raise ValueError(
                    f"--resume-from-step {resume_from_step}: no such checkpoint under {root} (there: {there})"
                )
            self.resumed = step_directory(root, resume_from_step or steps[-1])
        elif steps and not overwrite:
            self.resumed = step_directory(root, steps[-1])
            saved = load_meta(self.resumed).get("settings", {})
            different = [
                f"{name} was {saved[name]!r}, is now {value!r}"
                for name, value in self.settings.items()
                if name in saved and saved[name] != value and name not in may_change
            ]
            if different or not saved:
                raise ValueError(
                    f"{root} holds another run ({'; '.join(different) or 'of unknown settings'}): --overwrite starts a new one "
                    "there, --resume-from-step 0 continues it with these settings, another --model-tag leaves it alone"
                )
        self.meta = load_meta(self.resumed) if self.resumed is not None else {}
        """Of the checkpoint that this run continues from."""
        continued = steps and self.resumed == step_directory(root, steps[-1])
        self.run_id = self.meta.get("run_id", "") if continued else f"{time.time_ns():020d}"
        """Sorts by the time at which the run was started."""
        self.hint = "the same command resumes from there"
        if overwrite or not (continued or self.resumed is None):
            self.hint = (
                "--resume-from-step 0 in place of this command's --overwrite or --resume-from-step resumes from there"
            )
        self._saved_step = int(self.meta["step"]) if continued else None
        self.more_meta: dict[str, Any] = {}
        self.writers: Sequence[Writer] = ()
        self.keep_last: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run that is there came to its end."""
        return bool(self.meta.get("finished"))

    def configure(self, *, writers: Sequence[Writer], meta: Mapping[str, Any], keep_last: int | None = None) -> None:
        """What a checkpoint of this run holds besides settings, scores and training state."""
        self.writers, self.more_meta, self.keep_last = writers, dict(meta), keep_last

    def restore(self, trainer: Progress, read_weights: Callable[[Path], None]) -> None:
        """Puts model, optimizer, loader and generators where the checkpoint that is resumed from left them.

        `read_weights` raises `ValueError` where model or tokenizer are others; so does this where the data of
        `data_fingerprints` are.
        """
        if self.resumed is None:
            return
        verify_checkpoint(self.resumed)
        read_weights(self.resumed)
        for name, ours in self.more_meta.get("data_fingerprints", {}).items():
            saved = self.meta["data_fingerprints"][name]
            if saved != ours:
                raise ValueError(
                    f"{self.resumed} was made with other {name} (fingerprint {saved[:12]}, now {ours[:12]}); give what it was "
                    "made with, or start a new run (--overwrite; base-train: --init-from)"
                )
        state.restore(trainer, load_training_state(self.resumed))

    def start(self, trainer: Progress) -> None:
        """Sets the metrics of a run before this one aside; nothing is removed."""
        if trainer.ranks.is_main and self.resumed is None and self.metrics_file.exists():
            count = len(list(self.root.glob("metrics.*.jsonl")))
            self.metrics_file.rename(self.root / f"metrics.{count + 1}.jsonl")

    def save(self, trainer: Progress, *, scores: Mapping[str, float], keep_also: int | None) -> None:
        """A checkpoint of this very step, written by the first rank while the others wait."""
        if trainer.step == self._saved_step:
            return
        self._saved_step, training = trainer.step, state.capture(trainer)
        if trainer.ranks.is_main:
            save_checkpoint(
                self.root,
                trainer.step,
                writers=self.writers,
                meta={
                    "settings": self.settings,
                    **self.more_meta,
                    "run_id": self.run_id,
                    "scores": dict(scores),
                    "tokens_seen": trainer.tokens_seen,
                },
                training=training,
                keep_last=self.keep_last,
                keep_also=keep_also,
            )
        trainer.ranks.barrier()

    def add_outcome(self, step: int, *, scores: Mapping[str, float], finished: bool) -> None:
        """Puts what was measured of a step beside the files of its checkpoint, where there is one of this run."""
        directory = step_directory(self.root, step)
        if step in list_steps(self.root) and load_meta(directory).get("run_id", "") == self.run_id:
            add_outcome(directory, scores=scores, finished=finished)
