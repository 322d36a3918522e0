"""Choosing anew what a fitted adapter costs, in the stack that it will run in.

A detector gets another threshold: what its correctors cost is counted with what it refuses. A corrector whose every op
names its strength is scaled by one factor. Both are families as :mod:`safetykit.adapters.statistics.budget` tests them:
thresholds from the highest down, factors from the smallest up, in an order that no record had a part in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from ..adapters.artifact.adapter import Adapter, the_detector
from ..adapters.artifact.intervention import Intervention
from ..adapters.artifact.stack import describe_corrector
from ..adapters.budget import RATE, Budget, Groups, groups_of
from ..adapters.errors import UsageError
from ..adapters.ops.op import Detector
from ..adapters.statistics.budget import Choice, Promise, require_enough, strongest_within
from ..adapters.statistics.probe import auroc, between
from .data.record import Record
from .evaluation.evaluate import Decision, decide
from .model.vlm import VLM
from .progress import Progress

FACTORS = (0.25, 0.5, 0.75, 1.0)  # of a strength as it was fitted
_TOKENS = 16  # of an answer that is only judged
_BATCH = 64
_SHUT = 64.0  # a threshold that no risk reaches: log-odds of harm, or a cosine


def require_adjustable(adapter: Adapter) -> None:
    """Refuse an adapter that has neither a threshold nor a strength.

    Raises:
        UsageError: naming what has none.
    """
    if adapter.detector is not None:
        return
    without = [f"{one.op} at {one.site}" for one in adapter.interventions if _strength(one) is None]
    without += [f"{len(adapter.updates)} new weights"] * bool(adapter.updates)
    if without or not adapter.interventions:
        raise UsageError(
            f"{adapter.info.method} has neither a threshold to move nor a strength to scale: "
            f"{', '.join(without) or 'it changes nothing'}.",
            "Fit it again under the budget with --sweep, or calibrate a detector beside it.",
        )


def require_detector_kept(
    moved: Adapter, others: Sequence[Adapter], *, model: str = "MODEL", data: str = "DATA", out: str | Path = "ADAPTER"
) -> None:
    """Refuse another strength of a corrector that a detector beside it was fitted under.

    Args:
        model, data, out: how the user called them, for the commands that do it.

    Raises:
        UsageError: the detector would judge states that it has never seen.
    """
    detector = next((one for one in others if one.detector is not None), None)
    if moved.detector is None and detector is not None:
        method = detector.info.method
        raise UsageError(
            f"The detector ({method}) was fitted under {moved.info.method} as it is, and at another strength it would "
            "judge states that it has never seen.",
            f"Calibrate {moved.info.method} without it, then fit the detector under what that writes: "
            f"safetykit fit {method} {model} --data {data} --with {out} -o DETECTOR.",
        )


def tested_groups(budget: Budget, records: Sequence[Record]) -> Groups:
    """The harmless calibration records by group, without those that the fit split holds.

    Raises:
        UsageError: records name no group, or they are too few for the budget.
    """
    groups = groups_of(records, budget.budget_by)
    require_enough(budget, groups, counted=False)
    return groups


@dataclass(frozen=True)
class Calibration:
    """One calibration.

    Attributes:
        vlm: without any adapter.
        adapter: that is to be adjusted. ``beside``: those that run before it, which stay as they are; ``behind``:
            those that run after it.
        records: of the calibration split, and of the fit split those whose groups do not count.
    """

    vlm: VLM
    adapter: Adapter
    beside: tuple[Adapter, ...]
    records: tuple[Record, ...]
    budget: Budget
    batch_size: int = _BATCH
    behind: tuple[Adapter, ...] = ()

    def run(self, progress: Progress | None = None) -> Adapter:
        """The adapter with the lowest threshold, or the largest strength, that keeps the budget.

        Raises:
            UsageError: none does, or groups are too few.
        """
        require_adjustable(self.adapter)
        the_detector(self._stack(self.adapter))
        groups = tested_groups(self.budget, self.records)
        before = {one.id: one.outcome for one in self._answers(groups.records)}
        if self.adapter.detector is not None:
            return self._by_threshold(groups, before)
        return self._by_factor(groups, before, progress)

    def _stack(self, adapter: Adapter) -> list[Adapter]:
        """The stack, with the adapter as it is adjusted."""
        return [*self.beside, adapter, *self.behind]

    def _answers(self, records: Sequence[Any], *stack: Adapter) -> list[Decision]:
        with self.vlm.applied(*stack):
            return decide(self.vlm, records, max_new_tokens=_TOKENS, batch_size=self.batch_size)

    def _by_threshold(self, groups: Groups, before: Mapping[str, str | None]) -> Adapter:
        detector = self.adapter.detector
        assert detector is not None
        shut = replace(self.adapter, detector=detector.model_copy(update={"threshold": _SHUT}))
        calibration = [one for one in self.records if one.split == "calibration"]
        answers = self._answers(calibration, *self._stack(shut))
        after = {one.id: one.outcome for one in answers}
        risks = {one.id: one.scores["risk"] + _SHUT for one in answers}
        own = np.array([risks[one.id] for one in groups.records])
        values = np.unique(own)[::-1]
        then = [before[one.id] for one in groups.records]
        now = [after[one.id] for one in groups.records]

        def choices() -> Iterator[Any]:
            for value in values.tolist():
                yield lambda value=value: Choice.of(
                    f"risk {value:.4g}",
                    then,
                    ["refused" if r > value else outcome for r, outcome in zip(own.tolist(), now, strict=True)],
                )

        found = strongest_within(self.budget, groups, choices())
        if found is None:
            raise UsageError(
                "Not even a detector that refuses nothing keeps the budget: the adapters beside it cost too much.",
                "Calibrate or fit them under the budget first.",
            )
        at, promise = found
        harmful = np.array([one.label == "harmful" for one in answers])
        risk = np.array([risks[one.id] for one in answers])
        threshold = between(risk, float(values[at]))
        above = risk > threshold
        share = float(above[~harmful].mean())
        seen: dict[str, JsonValue] = {
            "what": "detector",
            "auroc": auroc(risk, harmful),
            "recall": float(above[harmful].mean()) if harmful.any() else None,
            "false_positive_rate": share,
            "scores": [float(risk.min()), float(np.nextafter(max(risk.max(), threshold), np.inf))],
        }
        more: dict[str, JsonValue] = {"calibration": [seen]}
        report = self.adapter.attachments.get("detector")
        if isinstance(report, dict):
            more["detector"] = {**report, "threshold": threshold, RATE: share, "budgeted": True}
        promise = replace(promise, chosen=f"threshold {threshold:.4g}")
        moved = replace(self.adapter, detector=detector.model_copy(update={"threshold": threshold}))
        return self._recorded(moved, promise, more)

    def _by_factor(self, groups: Groups, before: Mapping[str, str | None], progress: Progress | None) -> Adapter:
        then = [before[one.id] for one in groups.records]

        def choice(factor: float) -> Choice:
            stack = self._stack(scaled(self.adapter, factor))
            after = {one.id: one.outcome for one in self._answers(groups.records, *stack)}
            return Choice.of(f"{factor:g} times the strength", then, [after[one.id] for one in groups.records])

        found = strongest_within(
            self.budget,
            groups,
            ((lambda factor=factor: choice(factor)) for factor in FACTORS),  # type: ignore[misc]
            tell=(lambda count: progress(count, len(FACTORS))) if progress else None,
        )
        if found is None:
            raise UsageError(
                f"Not even {FACTORS[0]:g} times the strength keeps the budget.",
                "Raise the budget, fit another setting, or take another method.",
            )
        at, promise = found
        return self._recorded(scaled(self.adapter, FACTORS[at]), promise, {}, scaled_by=FACTORS[at])

    def _recorded(
        self, adapter: Adapter, promise: Promise, more: Mapping[str, JsonValue], **found: JsonValue
    ) -> Adapter:
        """The manifest says how it was calibrated, and what else was there."""
        given = {name: value for name, value in adapter.info.hyperparameters.items() if name != RATE}
        beside: dict[str, JsonValue] = {"calibrated_beside": _described(self.beside)}
        if self.behind:
            beside["calibrated_before"] = _described(self.behind)
        values = {**given, **self.budget.recorded_values, **found, **beside}
        info = adapter.info.model_copy(update={"hyperparameters": values})
        attachments = {**adapter.attachments, **more, "budget": promise.table()}
        return replace(adapter, info=info, attachments=attachments)


def _described(adapters: Sequence[Adapter]) -> list[JsonValue]:
    return [dict(describe_corrector(one)) for one in adapters]


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """A corrector with every strength ``factor`` times what it was."""

    def changed(item: Intervention) -> Intervention:
        name = _strength(item)
        if name is None:
            return item
        tensors = {**item.tensors, name: (item.tensors[name] * torch.tensor(factor)).to(item.tensors[name].dtype)}
        return replace(item, tensors=tensors)

    return replace(adapter, interventions=tuple(map(changed, adapter.interventions)))


def _strength(item: Intervention) -> str | None:
    op = item.make_op()
    return None if isinstance(op, Detector) else getattr(op, "strength", None)
