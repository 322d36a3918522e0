"""Thresholds set again on the graphs that ship.

A detector's risk and a gate's score are compared with thresholds that were fitted on the checkpoint's states, so that a
chosen share of harmless requests lies above them. Weights of 4 bits move these states, and often all scores one way: the
share that then lies above is another, and so is what is stopped. Recalibration reads the scores of harmless calibration
records from the export itself and puts every threshold where the fitted share of them lies above it again. Directions,
probes and everything else stay as fitted.

Gates are read while all of them are closed, so that none sees what another did, as they were fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch

from ..adapters.adapter import Adapter
from ..adapters.errors import InvalidArtifact, UsageError
from ..adapters.gating import GatedOp
from ..adapters.probe import threshold_at
from ..toolkit.inputs import Request
from ..toolkit.records import Record
from .layout import Recalibration
from .runtime import OnnxVLM

RISK = "risk"
_BATCH = 8
_AWAY = 1000.0  # beyond every score, and near enough that float32 still tells scores apart by 1e-4


def thresholds(adapters: Sequence[Adapter]) -> dict[str, tuple[float, float]]:
    """What was set by a false-positive rate: ``risk`` or ``{k}.score`` of intervention k → threshold and rate."""
    found: dict[str, tuple[float, float]] = {}
    numbers = count()
    for adapter in adapters:
        rate = _rate(adapter)
        for item in adapter.interventions:
            name = f"{next(numbers)}.score"
            if rate is not None and isinstance(item.make_op(), GatedOp):
                found[name] = float(item.tensors["threshold"]), rate
        if rate is not None and adapter.detector is not None:
            found[RISK] = adapter.detector.threshold, rate
    return found


def require_thresholds(adapters: Sequence[Adapter], records: Sequence[Record]) -> None:
    """Whether there is anything to set again, and anything to set it on.

    Raises:
        UsageError: no threshold was set by a false-positive rate, or there is no harmless record.
    """
    if not thresholds(adapters):
        raise UsageError(
            "No threshold of these adapters was set by a false-positive rate.",
            "Leave out --recalibrate; it is for detectors and for calibrated gates.",
        )
    if not any(record.label == "harmless" for record in records):
        raise UsageError(
            "The calibration split holds no harmless record.", "Add some: thresholds are set again on them."
        )


def with_thresholds(adapters: Sequence[Adapter], values: Mapping[str, float]) -> tuple[Adapter, ...]:
    """The adapters with other thresholds, by the names of :func:`thresholds`."""
    numbers = count()
    made = []
    for adapter in adapters:
        items, detector = [], adapter.detector
        for item in adapter.interventions:
            if (value := values.get(f"{next(numbers)}.score")) is not None:
                tensors = {**item.tensors, "threshold": torch.tensor(value, dtype=torch.float32)}
                item = dataclasses.replace(item, tensors=tensors)
            items.append(item)
        if detector is not None and RISK in values:
            detector = detector.model_copy(update={"threshold": values[RISK]})
        made.append(dataclasses.replace(adapter, interventions=tuple(items), detector=detector))
    return tuple(made)


def recalibrated(
    adapters: Sequence[Adapter], bake: Callable[[Sequence[Adapter]], OnnxVLM], records: Sequence[Record]
) -> tuple[tuple[Adapter, ...], tuple[Recalibration, ...]]:
    """Set the thresholds of ``adapters`` on the export that ``bake`` makes of them.

    Args:
        records: of the calibration split; harmful ones are left out.

    Returns:
        The adapters with new thresholds, and what was changed.

    Raises:
        UsageError: as :func:`require_thresholds`.
        InvalidArtifact: a score is not a number, or lies beyond all that a gate can be closed for.
    """
    require_thresholds(adapters, records)
    fitted = thresholds(adapters)
    harmless = [record for record in records if record.label == "harmless"]
    away = {name: value + (0.0 if name == RISK else _AWAY) for name, (value, _) in fitted.items()}
    scores = _read(bake(with_thresholds(adapters, away)), harmless, list(fitted))
    changes = []
    for name, (before, rate) in fitted.items():
        values = scores[name] + away[name] if name != RISK else scores[name]
        if not np.isfinite(values).all() or (name != RISK and (scores[name] > 0).any()):
            raise InvalidArtifact(
                f"Scores of {name} cannot be calibrated on: they reach {np.nanmax(np.abs(values)):.3g}.",
                "Export in a higher precision.",
            )
        after = _threshold(name, values, rate)
        changes.append(
            Recalibration(
                what=name,
                fitted=before,
                threshold=after,
                false_positive_rate=rate,
                records=len(values),
                above_fitted=int((values > before).sum()),
                above=int((values > after).sum()),
            )
        )
    return with_thresholds(adapters, {one.what: one.threshold for one in changes}), tuple(changes)


def _threshold(name: str, values: np.ndarray, rate: float) -> float:
    """As the fits set it: :func:`~safetykit.adapters.probe.threshold_at` for a risk, the quantile for a gate."""
    if name == RISK:
        return threshold_at(values, np.zeros(len(values), dtype=bool), rate)
    return float(np.quantile(values, 1 - rate))


def _rate(adapter: Adapter) -> float | None:
    """The false-positive rate that an adapter's thresholds were set by; None for one that has none."""
    options = adapter.info.hyperparameters
    rate = options.get("false_positive_rate")
    calibrated = options.get("gate") != "paper"  # which asks for a sign, not for a share
    return float(rate) if calibrated and isinstance(rate, int | float) else None


def _read(onnx_vlm: OnnxVLM, records: Sequence[Record], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of each record's prompt, in float64."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        extras = onnx_vlm.prefill_requests([Request(one.prompt, one.picture()) for one in batch]).extras
        for name in names:
            found[name].append(extras[name].astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}
