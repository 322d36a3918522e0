"""What CARE is fitted with where nothing is chosen: what did best on the reference VLM (``bench/care.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .settings import CARE


def windows(depth: int) -> dict[str, tuple[int, ...]]:
    """Runs of layers by name: the middle quarter and half, the later half, and all."""
    quarter, half = max(1, depth // 4), max(1, depth // 2)
    starts = {"quarter": ((depth - quarter) // 2, quarter), "half": ((depth - half) // 2, half)}
    starts |= {"later": (depth - half, half), "all": (0, depth)}
    return {name: tuple(range(start, start + length)) for name, (start, length) in starts.items()}


def usual(given: Mapping[str, Any], n_layers: int, d_model: int) -> CARE:
    """``given`` settings, and where they leave a choice what did best; layers and k are shares of the model's size."""
    options: dict[str, Any] = {"layers": windows(n_layers)["half"], "rank": max(1, d_model // 8)}
    if given.get("variant") != "official":
        options |= {"fusion": "masked", "site": "block", "contrast": "behaviour"}
    if "scope" in given or given.get("modalities", "both") != "both":
        options["fusion"] = "adaptive"  # masked has scopes of its own
    return CARE(**{**options, **given})
