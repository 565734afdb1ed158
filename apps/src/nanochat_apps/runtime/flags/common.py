"""Values that several commands' flags take. Nothing here imports torch, so that `--help` answers at once."""

from typing import Literal

DeviceType = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["float32", "bfloat16", "float16"]
Source = Literal["base", "sft", "rl"]
