"""A deterministic small world in plain English to train and test a tiny chat model on, without any download."""

from nanochat_data.synthetic.phrasing import Split
from nanochat_data.synthetic.world import MIXTURE, SKILLS, TinyWorld, grade

__all__ = ["MIXTURE", "SKILLS", "Split", "TinyWorld", "grade"]
