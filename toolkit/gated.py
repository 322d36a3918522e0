"""Fits whose pushes a detector's probe opens: a gate of the method's own is left out, the threshold may be set anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..adapters.artifact.adapter import Adapter
from ..adapters.artifact.deciding import ALLOWED
from ..adapters.artifact.gate import Gate
from ..adapters.artifact.sites import Site
from ..adapters.budget import Budget, groups_of
from ..adapters.errors import UsageError
from ..adapters.method import Method, load
from ..adapters.settings import Settings
from ..adapters.statistics.budget import threshold_within
from .data.record import Record
from .model.vlm import VLM


def pushed(method: Method, settings: Settings, depth: int) -> Iterable[Site]:
    """Where a method acts in a decoder of ``depth`` blocks."""
    found: Iterable[Site] = load(method.pushes)(settings, depth)
    return found


def require_openable(method: Method, gate: Gate, tried: Sequence[Settings], depth: int) -> list[Settings]:
    """Those of the settings whose pushes come after the probe is read.

    Raises:
        UsageError: of none they do.
    """
    refused: list[UsageError] = []
    kept = []
    for settings in tried:
        try:
            gate.require_before(pushed(method, settings, depth))
            kept.append(settings)
        except UsageError as error:
            refused.append(error)
    if not kept:
        raise refused[0]
    return kept


def gated(gate: Gate, method: Method, make: Callable[[Any], Adapter], settings: Any) -> Adapter:
    """The adapter of some settings behind a gate; what the method says of its own is neither asked nor recorded."""
    allowed = getattr(settings, ALLOWED, None)
    if allowed is not None and ALLOWED in settings.acting():
        settings = settings.but(**{ALLOWED: True})  # its own gate may decide nothing
    made = make(settings)
    values = made.info.hyperparameters
    if allowed is not None:
        made = replace(made, info=made.info.model_copy(update={"hyperparameters": {**values, ALLOWED: allowed}}))
    return gate.put(made, method.own_gate)


def calibrated(gate: Gate, vlm: VLM, records: Sequence[Record], budget: Budget) -> Gate:
    """The gate with the lowest threshold that keeps a budget on new groups: where it is closed, nothing changes.

    Args:
        records: of the fit and the calibration split.

    Raises:
        UsageError: see :meth:`Gate.require_prompt`, or there are too few groups for any threshold.
    """
    gate.require_prompt()
    calibration = [one for one in records if one.split == "calibration"]
    sites, risks = [Site.block(layer) for layer in gate.layers], dict[str, float]()
    for batch, states in vlm.states([[one] for one in calibration], sites):
        risks |= zip((one.id for one in batch), gate.risks([states[site] for site in sites]).tolist(), strict=True)
    threshold, promise = threshold_within(budget, groups_of(records, budget.budget_by), risks)
    risk = np.array([risks[one.id] for one in calibration])
    harmful = np.array([one.label == "harmful" for one in calibration])
    seen: Mapping[str, Any] = {
        "false_positive_rate": float((risk[~harmful] > threshold).mean()),
        "recall": float((risk[harmful] > threshold).mean()) if harmful.any() else None,
        "scores": [float(risk.min()), float(np.nextafter(max(risk.max(), threshold), np.inf))],
    }
    return replace(gate, threshold=threshold, calibration=seen, promise=promise.table())
