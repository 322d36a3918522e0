"""The figures of those benchmarks whose records an evaluation answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from ...data.carriers.names import FormName
from ...data.record import Record
from ..judges.verdict import Judge
from ..result import Benchmark, Evaluation, Figure, Judged
from . import choices, judged, words, yes_no  # noqa: F401  they register
from .metric import METRICS, Answered, Metric


def measured(
    evaluation: Evaluation, records: Sequence[Record], judges: Mapping[str, Judge] | None = None
) -> tuple[Benchmark, ...]:
    """Each benchmark apart, and those that a judge counts by each judge apart.

    Args:
        records: those that were answered, in any order; others are passed over.
        judges: by their names, those that judged.
    """
    ids = [one.id for one in evaluation.decisions]
    names = sorted({one.partition("/")[0] for one in ids} & METRICS.keys())
    if not names:
        return ()
    wanted = {one for one in ids if one.partition("/")[0] in names}
    by_id = {record.id: record for record in records if record.id in wanted}
    found: list[Benchmark] = []
    for name in names:
        own = {key: one for key, one in by_id.items() if key.startswith(f"{name}/") and not _drawn(one)}
        if own:
            found += _by_each(METRICS[name], evaluation, own, judges or {})
    return tuple(found)


def _by_each(
    metric: Metric, evaluation: Evaluation, records: Mapping[str, Record], judges: Mapping[str, Judge]
) -> list[Benchmark]:
    if not metric.judged:
        return [_counted(metric, evaluation, records, None, None)]
    if not evaluation.judged:
        return [_counted(metric, evaluation, records, None, None, evaluation.judge)]
    useful = [one for one in evaluation.judged if not metric.graded or judges[one.judge].graded == metric.graded]
    return [
        _counted(metric, evaluation, records, one, judges.get(one.judge), one.judge)
        for one in useful or evaluation.judged[:1]
    ]


def _counted(
    metric: Metric,
    evaluation: Evaluation,
    records: Mapping[str, Record],
    said: Judged | None,
    judge: Judge | None,
    name: str = "",
) -> Benchmark:
    answered = [
        Answered(
            records[one.id],
            one.text,
            said.outcomes[one.id] if said else one.outcome,
            said.scores.get(one.id) if said and judge is not None and judge.graded == metric.graded else None,
            one.scores,
        )
        for one in evaluation.decisions
        if one.id in records
    ]
    figures, note = metric.count(answered)
    if judge is None or not judge.partial:
        figures = {group: _whole(some) for group, some in figures.items()}
    return Benchmark(name=metric.name, n=len(answered), judge=name, figures=figures, note=note)


def _whole(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Without refusals in part, of which the judge knows nothing."""
    return {name: figure for name, figure in figures.items() if name != "partial refusal"}


def _drawn(record: Record) -> bool:
    """Whether it is a form that `safetykit data carriers` drew of a record."""
    return any(tag in get_args(FormName) and record.id.endswith(f"-{tag}") for tag in record.tags)
