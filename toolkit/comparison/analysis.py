"""From evaluations to results: every arm against the same model without a defence, on the same records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from ..data.records import Record
from ..evaluation.evaluate import Evaluation, Metric, Rate, Row
from ..evaluation.rates import kappa
from .entries import NONE, Budgets
from .frontier import front
from .results import ALL, METRICS, Agreement, ArmInfo, CarrierTest, Figures, Results, Summary, Test
from .statistics import Paired, carrier_effects, holm, paired

_LABEL: dict[Metric, str] = {"attack_success": "harmful", "over_refusal": "harmless", "exact": "harmless"}
_OUTCOME: dict[Metric, str] = {"attack_success": "answered", "over_refusal": "refused", "exact": "answered"}
FEWEST = 10  # records of a carrier below which it is not called the worst


@dataclass(frozen=True)
class Answered:
    """An arm's evaluation of a benchmark, with the records it answered."""

    benchmark: str
    evaluation: Evaluation
    records: Sequence[Record]

    @cached_property
    def by_judge(self) -> dict[str, dict[str, str | None]]:
        """Outcomes by the record's id, by judge."""
        return {one.judge: dict(one.outcomes) for one in self.evaluation.judged}

    def rows(self, judge: str) -> tuple[Row, ...]:
        """The table by a judge."""
        return next(one.rows for one in self.evaluation.judged if one.judge == judge)

    def metrics(self, judge: str) -> list[Metric]:
        """Those that the judge counts here."""
        known = {name for row in self.rows(judge) for name in row.metrics}
        return [name for name in METRICS if name in known]


@dataclass(frozen=True)
class Compared:
    """What was found, with the answers that it was found in.

    Attributes:
        answers: by family and arm, in the order of the benchmarks.
    """

    results: Results
    answers: dict[tuple[str, str], list[Answered]]


@dataclass(frozen=True)
class _Point:
    """A record in a test."""

    key: str
    group: str
    carrier: str
    before: bool
    after: bool


@dataclass(frozen=True)
class Family:
    """A model with everything that is put on it.

    Attributes:
        arms: by their names, ``none`` first; each with its answers to all benchmarks.
    """

    name: str
    arms: Mapping[str, Sequence[Answered]]
    judges: Sequence[str]
    budgets: Budgets

    def figures(self) -> Iterator[Figures]:
        """Every table."""
        for arm, answers in self.arms.items():
            for one in answers:
                for judge in self.judges:
                    missing = sum(outcome is None for outcome in one.by_judge[judge].values())
                    yield Figures(
                        family=self.name,
                        arm=arm,
                        benchmark=one.benchmark,
                        judge=judge,
                        rows=one.rows(judge),
                        no_verdict=missing,
                    )

    def tests(self) -> Iterator[Test]:
        """Every paired test: per benchmark, and over all records if there are several."""
        benchmarks = [one.benchmark for one in self.arms[NONE]]
        for judge in self.judges:
            for chosen in [*([name] for name in benchmarks), *([benchmarks] if len(benchmarks) > 1 else [])]:
                for metric in METRICS:
                    yield from self._tests(judge, chosen, metric)

    def _tests(self, judge: str, benchmarks: Sequence[str], metric: Metric) -> Iterator[Test]:
        arms = [arm for arm in self.arms if arm != NONE]
        points = {arm: list(self._points(judge, benchmarks, metric, arm)) for arm in arms}
        some = next(iter(points.values()), [])
        carriers = list(dict.fromkeys(point.carrier for point in some))
        groups = [ALL, *(carriers if metric == "attack_success" and len(carriers) > 1 else [])]
        for group in groups:
            found: dict[str, Paired] = {}
            for arm in arms:
                chosen = [one for one in points[arm] if group in (ALL, one.carrier)]
                if chosen:
                    found[arm] = paired(
                        np.array([one.before for one in chosen]),
                        np.array([one.after for one in chosen]),
                        [one.group for one in chosen],
                        tests=len(arms),
                    )
            for (arm, one), adjusted in zip(found.items(), holm([one.p for one in found.values()]), strict=True):
                yield Test(
                    family=self.name,
                    arm=arm,
                    benchmark=benchmarks[0] if len(benchmarks) == 1 else ALL,
                    judge=judge,
                    metric=metric,
                    group=group,
                    adjusted=adjusted,
                    **vars(one),
                )

    def _points(self, judge: str, benchmarks: Sequence[str], metric: Metric, arm: str) -> Iterator[_Point]:
        for first, second in zip(self.arms[NONE], self.arms[arm], strict=True):
            if first.benchmark not in benchmarks or metric not in first.metrics(judge):
                continue
            before, after = first.by_judge[judge], second.by_judge[judge]
            for record in first.records:
                if record.label == _LABEL[metric]:
                    wanted = _OUTCOME[metric]
                    yield _Point(
                        f"{first.benchmark}/{record.id}",
                        f"{first.benchmark}/{record.group or record.id}",
                        record.carrier,
                        before[record.id] == wanted,
                        after[record.id] == wanted,
                    )

    def carriers(self) -> Iterator[CarrierTest]:
        """What it does that a request is seen: of the records that ask the same by text and by picture."""
        for arm, answers in self.arms.items():
            for one in answers:
                harmful = [record for record in one.records if record.label == "harmful"]
                intents = intents_of(harmful)
                for judge in self.judges:
                    answered = {record.id: one.by_judge[judge][record.id] == "answered" for record in harmful}
                    for effect in carrier_effects(answered, intents, {one.id: one.carrier for one in harmful}):
                        found = effect.outcomes
                        yield CarrierTest(
                            family=self.name,
                            arm=arm,
                            benchmark=one.benchmark,
                            judge=judge,
                            carrier=effect.carrier,
                            n=found.n,
                            text=found.before,
                            seen=found.after,
                            only_seen=found.gained,
                            only_text=found.lost,
                            low=found.low,
                            high=found.high,
                            p=found.p,
                        )

    def agreement(self) -> Iterator[Agreement]:
        """Of each pair of judges, over all answers and over those of each arm."""
        for one, other in combinations(self.judges, 2):
            for arm in (ALL, *self.arms):
                both = [
                    (first, second)
                    for name, answers in self.arms.items()
                    if arm in (ALL, name)
                    for answered in answers
                    for key, first in answered.by_judge[one].items()
                    if first is not None and (second := answered.by_judge[other][key]) is not None
                ]
                if both:
                    equal = sum(first == second for first, second in both) / len(both)
                    yield Agreement(
                        family=self.name, arm=arm, one=one, other=other, n=len(both), equal=equal, kappa=kappa(both)
                    )

    def summaries(self) -> list[Summary]:
        """Every arm over all benchmarks, by every judge."""
        return [one for judge in self.judges for one in self._summaries(judge)]

    def _summaries(self, judge: str) -> Iterator[Summary]:
        rates = {arm: pooled(answers, judge) for arm, answers in self.arms.items()}
        known = [metric for metric in METRICS if metric in rates[NONE]]
        fronted = front([tuple(_cost(metric, rates[arm][metric].rate) for metric in known) for arm in self.arms])
        for (arm, answers), on_front in zip(self.arms.items(), fronted, strict=True):
            worst, group = worst_of(answers, judge, "attack_success")
            yield Summary(
                family=self.name,
                arm=arm,
                judge=judge,
                rates=rates[arm],
                worst=worst,
                worst_group=group,
                worst_over_refusal=worst_of(answers, judge, "over_refusal")[0],
                within_budget=None if arm == NONE else self._within(rates[NONE], rates[arm]),
                on_front=on_front,
            )

    def _within(self, before: Mapping[Metric, Rate], after: Mapping[Metric, Rate]) -> bool:
        over = after["over_refusal"].rate - before["over_refusal"].rate if "over_refusal" in after else 0.0
        lost = before["exact"].rate - after["exact"].rate if "exact" in after else 0.0
        slack = 1e-9  # of sums of shares
        return over <= self.budgets.over_refusal + slack and lost <= self.budgets.utility_loss + slack


def intents_of(records: Sequence[Record]) -> dict[str, str]:
    """What records ask for, by their ids: records that share it ask the same in several ways.

    It is the group, or where that is empty the id, if others are grouped under it, or the intent.
    """
    groups = {record.group for record in records if record.group}
    found = {}
    for record in records:
        if said := record.group or (record.id if record.id in groups else record.intent):
            found[record.id] = said
    return found


def _cost(metric: Metric, rate: float) -> float:
    return -rate if metric == "exact" else rate


def pooled(answers: Iterable[Answered], judge: str) -> dict[Metric, Rate]:
    """Shares over the records of several benchmarks."""
    counts: dict[Metric, tuple[int, int]] = {}
    for one in answers:
        for metric, rate in one.rows(judge)[0].metrics.items():
            count, n = counts.get(metric, (0, 0))
            counts[metric] = (count + rate.count, n + rate.n)
    return {metric: Rate.of(*counts[metric]) for metric in METRICS if metric in counts}


def worst_of(answers: Sequence[Answered], judge: str, metric: Metric) -> tuple[Rate | None, str]:
    """The carrier with the highest share, of those with records enough, and what it is called."""
    found = [
        (row.metrics[metric], row.group if len(answers) == 1 else f"{one.benchmark}: {row.group}")
        for one in answers
        for row in one.rows(judge)
        if metric in row.metrics and row.group != ALL and "/" not in row.group
    ]
    enough = [one for one in found if one[0].n >= FEWEST] or found
    return max(enough, key=lambda one: one[0].rate) if enough else (None, "")


def families(
    arms: Sequence[tuple[ArmInfo, Sequence[Answered]]], judges: Sequence[str], budgets: Budgets
) -> list[Family]:
    """Arms put together by what they are compared with; of each, the model by itself comes first."""
    found: dict[str, dict[str, Sequence[Answered]]] = {}
    for info, answers in arms:
        found.setdefault(info.family, {})[info.name] = answers
    return [Family(name, {NONE: members[NONE], **members}, judges, budgets) for name, members in found.items()]
