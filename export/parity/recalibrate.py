"""Thresholds set again on the graphs that ship.

A detector's risk and a gate's score are compared with thresholds that were fitted on the checkpoint's states. Weights
of 4 bits move these states, and with them most scores one way, so that other requests lie above than before.
Recalibration reads the scores of calibration records from the checkpoint and from the export itself, and puts every
threshold where as many of them lie above it in the graph as lie above the fitted one in PyTorch (quantiles are matched,
which takes no label). Directions, probes and everything else stay as fitted.

Gates are read while all of them are closed, so that none sees what another did, as they were fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ...adapters.artifact.adapter import Adapter
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.ops.gating import GatedOp
from ...toolkit.data.records import Record
from ...toolkit.model.asking import request_of
from ...toolkit.model.requests import Request
from ..manifest import Recalibration
from ..runtime.onnx_vlm import OnnxVLM
from .graph_base import OWN_WEIGHTS, Standing

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

RISK = "risk"
_BATCH = 8
_AWAY = 1000.0  # beyond every score, and near enough that float32 still tells scores apart by 1e-4
Scores = Mapping[str, Float[np.ndarray, " records"]]


def thresholds(adapters: Sequence[Adapter]) -> dict[str, float]:
    """Thresholds of gates, as ``{k}.score`` of intervention k, and of the detector, as ``risk``."""
    found: dict[str, float] = {}
    numbers = count()
    for adapter in adapters:
        for item in adapter.interventions:
            name = f"{next(numbers)}.score"
            if isinstance(item.make_op(), GatedOp):
                found[name] = float(item.tensors["threshold"])
        if adapter.detector is not None:
            found[RISK] = adapter.detector.threshold
    return found


def require_thresholds(adapters: Sequence[Adapter], records: Sequence[Record]) -> None:
    """Whether there is anything to set again, and anything to set it on.

    Raises:
        UsageError: no gate and no detector, or no record.
    """
    if not thresholds(adapters):
        raise UsageError(
            "These adapters have no threshold.", "Leave out --recalibrate; it is for detectors and for gates."
        )
    if not records:
        raise UsageError("The calibration split holds no record.", "Add some: thresholds are set again on them.")


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
    vlm: VLM,
    adapters: Sequence[Adapter],
    bake: Callable[[Sequence[Adapter]], OnnxVLM],
    records: Sequence[Record],
    *,
    standing: Standing = OWN_WEIGHTS,
    allow_wrong_base: bool = False,
) -> tuple[tuple[Adapter, ...], tuple[Recalibration, ...]]:
    """Set the thresholds of ``adapters`` on the export that ``bake`` makes of them.

    Args:
        vlm: one without weights has them until PyTorch's scores are read.
        standing: the weights that the adapters were fitted on.
        records: of the calibration split, harmful and harmless ones as the fits saw them.

    Returns:
        The adapters with new thresholds, and what was changed.

    Raises:
        UsageError: as :func:`require_thresholds`.
        InvalidArtifact: a score is not a number, or lies beyond all that a gate can be closed for.
    """
    require_thresholds(adapters, records)
    fitted = thresholds(adapters)
    away = {name: value + (0.0 if name == RISK else _AWAY) for name, value in fitted.items()}
    closed = with_thresholds(adapters, away)

    def in_torch(requests: Sequence[Request]) -> Mapping[str, np.ndarray]:
        with vlm.applied(*closed, allow_wrong_base=allow_wrong_base) as hooks:
            vlm.prefill(requests)
        return {name: hooks.extras[name].float().cpu().numpy() for name in fitted}

    with vlm.in_memory(), standing.held(vlm):
        before = _scores(in_torch, records, away)
    with bake(closed).in_use() as onnx_vlm:
        after = _scores(lambda requests: onnx_vlm.prefill_requests(requests).extras, records, away)
    changes = []
    for name, threshold in fitted.items():
        wanted = int((before[name] > threshold).sum())
        chosen = matching_threshold(after[name], wanted, threshold)
        changes.append(
            Recalibration(
                what=name,
                fitted=threshold,
                threshold=chosen,
                records=len(records),
                wanted=wanted,
                above_fitted=int((after[name] > threshold).sum()),
                above=int((after[name] > chosen).sum()),
            )
        )
    return with_thresholds(adapters, {one.what: one.threshold for one in changes}), tuple(changes)


def matching_threshold(scores: Float[np.ndarray, " records"], wanted: int, fitted: float) -> float:
    """The threshold above which ``wanted`` of the scores lie: ``fitted`` if they do, else the middle of the gap."""
    if (scores > fitted).sum() == wanted:
        return fitted
    ordered = np.sort(scores)[::-1]
    if wanted == 0:
        return float(ordered[0])
    if wanted == len(ordered):
        return float(np.nextafter(ordered[-1], -np.inf))
    return float((ordered[wanted - 1] + ordered[wanted]) / 2)


def _scores(
    read: Callable[[Sequence[Request]], Mapping[str, np.ndarray]], records: Sequence[Record], away: Mapping[str, float]
) -> Scores:
    """Risks, and scores of gates without their thresholds, of each record's prompt, in float64."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in away}
    for requests in _batches(records):
        extras = read(requests)
        for name, threshold in away.items():
            values = extras[name].astype(np.float64)
            if not np.isfinite(values).all() or (name != RISK and (values > 0).any()):
                raise InvalidArtifact(
                    f"Scores of {name} cannot be calibrated on: one is {values.max():.3g}.", "Use a higher precision."
                )
            found[name].append(values if name == RISK else values + threshold)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _batches(records: Sequence[Record]) -> Iterator[list[Request]]:
    for start in range(0, len(records), _BATCH):
        yield [request_of(one) for one in records[start : start + _BATCH]]
