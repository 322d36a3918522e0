"""Tiny checkpoints with random weights, one for each family, from its real configuration and processor classes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .common import BUILDERS, GAIN, LAYERS, WIDTH

for _module in sorted(Path(__file__).parent.glob("[!_]*.py")):  # each registers its builders
    import_module(f"{__name__}.{_module.stem}")

NAMES = tuple(sorted(BUILDERS))


def build(name: str, folder: Path, gain: float = GAIN.get()) -> Path:
    """Write the checkpoint of model type ``name`` into ``folder``: model, tokenizer, processor, chat template."""
    token = GAIN.set(gain)
    BUILDERS[name](folder)
    GAIN.reset(token)
    return folder


__all__ = ["LAYERS", "NAMES", "WIDTH", "build"]
