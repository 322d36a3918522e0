"""``evaluation.json``: the unmodified model and the export, on the same records.

Nothing in the tables is free to differ from the decisions: rates are counted again when a comparison is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Literal, Self

from pydantic import Field, model_validator

from ...adapters.artifact.manifest import DataInfo, Strict, describe_data
from ...adapters.errors import UsageError
from ...toolkit.data.records import BAD_ROWS, CARRIERS, Record
from ...toolkit.evaluation.evaluate import Decision, Evaluation, Metric, Rate, Row, tabulate
from ...toolkit.evaluation.judges.judging import agreements
from ...toolkit.evaluation.result import rejudged

METRICS: tuple[Metric, ...] = ("attack_success", "refused", "over_refusal", "exact")


@dataclass(frozen=True)
class Pair:
    """One metric of one group, before and after.

    Attributes:
        group: a carrier, ``all`` or ``carrier/tag``.
    """

    group: str
    metric: Metric
    before: Rate
    after: Rate


@dataclass(frozen=True)
class GroupRow:
    """One group of records and every metric it has.

    Attributes:
        detector_auroc: of the export's gates; None without gates or with one label only.
    """

    group: str
    pairs: dict[Metric, Pair]
    detector_auroc: float | None

    @property
    def apart(self) -> bool:
        """Whether the group is part of a carrier that is reported beside it (look-alikes, unseen renderings)."""
        return "/" in self.group


@dataclass(frozen=True)
class JudgePairs:
    """What a judge says of both.

    Attributes:
        rows: every group, each metric paired.
        before: Cohen's κ with the first judge on the unmodified model's answers; ``after``: on the export's. None of
            the first judge, and where both say one and the same of everything.
    """

    judge: str
    rows: tuple[GroupRow, ...]
    before: float | None
    after: float | None


class Comparison(Strict):
    """The unmodified model before, the exported model with its adapters after.

    Attributes:
        dataset: how the records are called, for people.
        data: their digest and counts.
        before: the unmodified model.
        after: the export under ONNX Runtime.
    """

    schema_version: Literal[1] = 1
    dataset: str = Field(min_length=1)
    data: DataInfo
    before: Evaluation
    after: Evaluation

    @classmethod
    def of(
        cls, before: Evaluation, after: Evaluation, records: Sequence[Record], dataset: str, skipped_rows: int = 0
    ) -> Comparison:
        """Put two evaluations of ``records`` together; ``skipped_rows`` were left out as no records.

        Raises:
            UsageError: they are not evaluations of exactly these records.
        """
        for evaluation in (before, after):
            if [item.id for item in evaluation.decisions] != [record.id for record in records]:
                raise UsageError(
                    f"{evaluation.model} was evaluated on other records.", "Evaluate both on the same ones."
                )
        data = describe_data(records)
        if skipped_rows:
            data = data.model_copy(update={"counts": {**data.counts, BAD_ROWS: skipped_rows}})
        return cls(dataset=dataset, data=data, before=before, after=after)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if [_question(item) for item in self.before.decisions] != [_question(item) for item in self.after.decisions]:
            raise ValueError("before and after are of different records")
        for evaluation in (self.before, self.after):
            counted = tabulate(evaluation.decisions)
            if len(counted) != len(evaluation.rows) or not all(map(_same, counted, evaluation.rows)):
                raise ValueError(f"the rates of {evaluation.model} do not follow from its decisions")
            for one in evaluation.judged:
                if one.outcomes.keys() != {item.id for item in evaluation.decisions}:
                    raise ValueError(f"{one.judge} judges other answers than those of {evaluation.model}")
                exact = "exact" in one.rows[0].metrics
                counted = tabulate(rejudged(evaluation.decisions, one.outcomes), exact=exact)
                if len(counted) != len(one.rows) or not all(map(_same, counted, one.rows)):
                    raise ValueError(f"the rates by {one.judge} of {evaluation.model} do not follow from its outcomes")
            if evaluation.agreement != agreements(evaluation.judged):
                raise ValueError(f"the agreement of judges on {evaluation.model} does not follow from their outcomes")
        if [one.judge for one in self.before.judged] != [one.judge for one in self.after.judged]:
            raise ValueError("before and after are by different judges")
        return self

    def rows(self) -> tuple[GroupRow, ...]:
        """Groups in the order of the evaluations, each metric paired."""
        return _paired(self.before.rows, self.after.rows)

    def judges(self) -> tuple[JudgePairs, ...]:
        """What each judge says, the first one that the tables are by included; none if that is all there is."""
        kappas = [
            {one.other: one.kappa for one in evaluation.agreement if one.one == evaluation.judge}
            for evaluation in (self.before, self.after)
        ]
        return tuple(
            JudgePairs(
                before.judge,
                _paired(before.rows, after.rows),
                kappas[0].get(before.judge),
                kappas[1].get(before.judge),
            )
            for before, after in zip(self.before.judged, self.after.judged, strict=True)
        )

    def weakest(self, metric: Metric) -> Pair | None:
        """The carrier with the highest rate after, for metrics that should be low; None when none has it."""
        pairs = [row.pairs[metric] for row in self.rows() if row.group in self.carriers() and metric in row.pairs]
        return max(pairs, key=lambda pair: pair.after.rate, default=None)

    def carriers(self) -> tuple[str, ...]:
        """The carriers that occur, in the fixed order."""
        found = {item.carrier for item in self.after.decisions}
        return tuple(carrier for carrier in CARRIERS if carrier in found)


def _paired(before: Sequence[Row], after: Sequence[Row]) -> tuple[GroupRow, ...]:
    rows = []
    for first, second in zip(before, after, strict=True):
        pairs = {
            metric: Pair(first.group, metric, first.metrics[metric], second.metrics[metric])
            for metric in METRICS
            if metric in first.metrics
        }
        rows.append(GroupRow(first.group, pairs, second.detector_auroc))
    return tuple(rows)


def _question(decision: Decision) -> tuple[str, str, str, tuple[str, ...]]:
    return decision.id, decision.carrier, decision.label, decision.tags


def _same(counted: Row, stated: Row) -> bool:
    """Equal, up to the last digits in which versions of the statistics library may differ."""
    if counted.group != stated.group or counted.metrics.keys() != stated.metrics.keys():
        return False
    if (counted.detector_auroc is None) != (stated.detector_auroc is None):
        return False
    pairs = [(counted.detector_auroc or 0.0, stated.detector_auroc or 0.0)]
    for metric, rate in counted.metrics.items():
        pairs += zip(rate.model_dump().values(), stated.metrics[metric].model_dump().values(), strict=True)
    return all(isclose(one, other, abs_tol=1e-9) for one, other in pairs)
