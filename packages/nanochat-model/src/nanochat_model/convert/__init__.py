"""Models of other projects: karpathy/nanochat's checkpoints in, transformers both ways."""

from nanochat_model.convert.nanochat import from_nanochat
from nanochat_model.convert.transformers import from_transformers, to_transformers

__all__ = ["from_nanochat", "from_transformers", "to_transformers"]
