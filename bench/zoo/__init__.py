"""Tiny checkpoints with random weights, one for each family, from its real configuration and processor classes."""

from __future__ import annotations

from pathlib import Path

from . import gemma, idefics, internvl, llavas, qwen  # noqa: F401  each registers its builders
from .common import BUILDERS, GAIN, LAYERS, WIDTH

NAMES = tuple(sorted(BUILDERS))


def build(name: str, folder: Path, gain: float = GAIN.get()) -> Path:
    """Write the checkpoint of model type ``name`` into ``folder``: model, tokenizer, processor, chat template."""
    token = GAIN.set(gain)
    BUILDERS[name](folder)
    GAIN.reset(token)
    return folder


__all__ = ["LAYERS", "NAMES", "WIDTH", "build"]
