"""Causal diagnosis: which layers and neurons carry a model's refusals, and where it reads pictures."""

from __future__ import annotations

from .channel_map import ChannelMap
from .run import diagnose

__all__ = ["ChannelMap", "diagnose"]
