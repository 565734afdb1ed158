"""Models of other projects: karpathy/nanochat's checkpoints in, transformers both ways, ONNX out."""

from nanochat_model.convert.nanochat import from_nanochat
from nanochat_model.convert.onnx import to_onnx
from nanochat_model.convert.transformers import from_transformers, to_transformers

__all__ = ["from_nanochat", "from_transformers", "to_onnx", "to_transformers"]
