"""The reference VLM: a model organism, a tiny LLaVA whose safety holds for text and fails for pictures.

Two checkpoints of one recipe ship here, `mild` and `severe`, with their records and pictures. This module imports
neither torch nor transformers: it only says where things lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Name = Literal["mild", "severe"]
Split = Literal["fit", "calibration", "test"]

__all__ = ["records_path", "reference_path"]


def reference_path(name: Name = "mild") -> Path:
    """The folder of a checkpoint; it loads with `AutoModelForImageTextToText.from_pretrained`.

    Raises ValueError for an unknown name.
    """
    if name not in get_args(Name):
        raise ValueError(f"no reference model {name!r}: choose one of {', '.join(get_args(Name))}")
    return Path(__file__).parent / name


def records_path(split: Split) -> Path:
    """The JSONL file of a split. Its picture paths are relative to the file. ValueError for an unknown split."""
    if split not in get_args(Split):
        raise ValueError(f"no split {split!r}: choose one of {', '.join(get_args(Split))}")
    return Path(__file__).parent / "data" / "records" / f"{split}.jsonl"
