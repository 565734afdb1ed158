"""tinyworld: a deterministic small world in plain English to train and test a tiny chat model on, without any download."""

from nanochat_data.tinyworld.randomness import Split
from nanochat_data.tinyworld.task import TinyWorldTask, grade
from nanochat_data.tinyworld.world import MIXTURE, SKILLS, TinyWorld

__all__ = ["MIXTURE", "SKILLS", "Split", "TinyWorld", "TinyWorldTask", "grade"]
