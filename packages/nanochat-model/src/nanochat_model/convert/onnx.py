"""The model as an ONNX graph (extra `onnx`): token ids in, logits out, without a KV cache."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from nanochat_model.gpt import GPT

LARGEST_FILE_BYTES = 1_500_000_000
"""An ONNX file holds 2 GB at most; larger weights go to a file beside it."""


class _Logits(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(token_ids)
        return logits


def to_onnx(model: GPT, path: str | Path) -> None:
    """Writes a graph `token_ids (batch, time) int64 -> logits (batch, time, V) float32`, computed in float32.

    Batch and time are free, time up to `sequence_len`. Raises `ValueError` for sliding windows, whose blocks depend on the
    length in a way that a graph does not hold, and `ImportError` naming the extra.
    """
    config = model.config
    if any(config.window(i) < config.sequence_len for i in range(config.n_layer)):
        raise ValueError(
            f"an ONNX graph has no place for sliding windows; window_pattern={config.window_pattern!r} does not convert"
        )
    try:
        import onnxscript  # noqa: F401  (what torch.onnx writes graphs with)
    except ImportError as error:
        raise ImportError("writing ONNX needs onnxscript: pip install 'nanochat-model[onnx]'") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    computed = GPT(config)
    computed.load_state_dict(model.state_dict())
    num_bytes = sum(parameter.numel() * 4 for parameter in computed.parameters())
    example = torch.zeros((2, min(8, config.sequence_len)), dtype=torch.int64)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=config.sequence_len)},)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter's progress
        torch.onnx.export(
            _Logits(computed).eval(),
            (example,),
            str(path),
            input_names=["token_ids"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=num_bytes > LARGEST_FILE_BYTES,
            verbose=False,
        )
