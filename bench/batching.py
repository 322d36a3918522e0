"""What a row costs in a batch: the graphs alone, without a server, in time of the processor."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Request

ROWS = (1, 2, 4, 8, 16)
PARTS = ("preparing", "vision encoder", "decoder, prompt", "decoder, a token")
_TOKEN = 5  # any that is no picture's


def costs(model: OnnxVLM, requests: Sequence[Request], times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of processor a row, by the number of rows and by part; medians, all measured in turn.

    Args:
        requests: with pictures where there are some; the first ones are taken.
        times: how often each is measured.
    """
    pictured = [one for one in requests if one.pictures] or list(requests)
    work: dict[tuple[int, str], Callable[[], object]] = {}
    for rows in ROWS:
        work |= {(rows, part): one for part, one in _parts(model, pictured[:rows]).items() if len(pictured) >= rows}
    found: dict[tuple[int, str], list[float]] = {key: [] for key in work}
    order = random.Random(0)
    for _ in range(times):
        for key in order.sample(list(work), len(work)):
            began = time.process_time()
            work[key]()
            found[key].append(1000 * (time.process_time() - began) / key[0])
    told: dict[str, dict[str, float]] = {}
    for (rows, part), seconds in found.items():
        told.setdefault(str(rows), {})[part] = float(np.median(seconds))
    return told


def _parts(model: OnnxVLM, requests: Sequence[Request]) -> dict[str, Callable[[], object]]:
    inputs = model.inputs.prepare(requests)
    seen = model.see(inputs.pictures) if inputs.pictures else None
    text = model.inputs.prepare([one.without_pictures() for one in requests]) if model.needs_reference else None
    state = model.prefill(inputs, text, seen)
    tokens = np.full(len(requests), _TOKEN)
    works: tuple[Callable[[], object], ...] = (
        lambda: model.inputs.prepare(requests),
        lambda: model.see(inputs.pictures) if inputs.pictures else None,
        lambda: model.prefill(inputs, text, seen),
        lambda: model.step(state, tokens),
    )
    return dict(zip(PARTS, works, strict=True))


def lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The table."""
    told = [
        "| rows | " + " | ".join(f"{part}, ms of processor a row" for part in PARTS) + " |",
        "|---:|" + "---:|" * len(PARTS),
    ]
    return told + [
        f"| {rows} | " + " | ".join(f"{one[part]:.2f}" for part in PARTS) + " |"
        for rows, one in sorted(found.items(), key=lambda row: int(row[0]))
    ]
