"""The flags of quickstart."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat_apps.runtime.flags.common import DeviceType


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything has a default; a second run skips what is done."""

    smoke: bool = False
    """All stages on a toy size, in about a minute: shows that the machinery works, not that the model does."""
    fresh: bool = False
    """Remove what an earlier quickstart made and start over."""
    serve: bool = False
    """Start the chat server at the end."""
    port: int = 8000
    device_type: DeviceType = "auto"
    seed: int = 42
