"""How much of everything the quickstart makes, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

SEQUENCE_LEN = 256
BATCH_TOKENS = 4096
COMPILE_S = 75.0
"""Compiling both training steps, and what else does not depend on how fast a step is."""
OTHER_STEPS = 300
"""Sampling for reinforcement learning, evaluations and generating data take as long as so many training steps."""
BASE_SHARE = 0.25
"""Of the training steps; the others fine-tune."""
DEEPER_FROM_STEPS, DEEPER, DEEPER_COST = 3000, 6, 2.6
"""With so many steps of the usual model in reach, a deeper one learns more in the same time; a step costs so much more."""


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

    def minutes(self, step_s: float) -> float:
        """How long all of it takes where a training step takes `step_s` seconds."""
        return (COMPILE_S + (self.base_steps + self.sft_steps + OTHER_STEPS) * step_s) / 60


FULL = Size(
    depth=4,
    vocab_size=2048,
    num_documents=30_000,
    base_steps=280,
    sft_steps=860,
    num_conversations=200_000,
    rl_steps=24,
    questions_per_skill=200,
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


def sized(minutes: float, step_s: float) -> Size:
    """The size that takes so many minutes where a training step of `FULL` takes `step_s` seconds; 100 steps at least."""
    steps = max(100, round((minutes * 60 - COMPILE_S) / step_s) - OTHER_STEPS)
    depth = DEEPER if steps > DEEPER_FROM_STEPS else FULL.depth
    steps = round(steps / DEEPER_COST) if depth == DEEPER else steps
    base_steps = round(BASE_SHARE * steps)
    documents = max(FULL.num_documents, 100 * base_steps)
    return replace(FULL, depth=depth, num_documents=documents, base_steps=base_steps, sft_steps=steps - base_steps)
