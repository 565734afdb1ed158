"""Tokenizers of other projects: karpathy/nanochat's pickle in, transformers' files both ways."""

from nanochat_tokenizer.convert.nanochat import from_nanochat
from nanochat_tokenizer.convert.transformers import from_transformers, save_transformers, to_transformers

__all__ = ["from_nanochat", "from_transformers", "save_transformers", "to_transformers"]
