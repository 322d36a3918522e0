"""Causal diagnosis: which layers and neurons carry a model's refusals, and where it reads pictures.

Names are loaded on first use: a channel map can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"ChannelMap": ".channel_map", "diagnose": ".run"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
