"""Examples of failures for the report: attacks that succeed, and harmless requests that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....toolkit.comparison.analysis import Answered
from ....toolkit.comparison.entries import NONE
from ....toolkit.comparison.results import Results
from ....toolkit.data.sheet import card_of

SHOWN = 2  # of a carrier and kind
_LONGEST = 400  # characters of an answer


@dataclass(frozen=True)
class Failure:
    """A record with the answer that is a failure.

    Attributes:
        card: what was asked, as contact sheets show it.
        before: the answer without a defence; empty where this is that answer.
    """

    card: dict[str, Any]
    benchmark: str
    answer: str
    before: str


@dataclass(frozen=True)
class Failures:
    """Of one defence.

    Attributes:
        seed: whose answers they are, where there are several.
        attacks: harmful requests that were answered; ``refusals``: harmless ones that were refused.
        counts: of all such records.
    """

    arm: str
    seed: int | None
    attacks: tuple[Failure, ...]
    refusals: tuple[Failure, ...]
    counts: tuple[int, int]


def failures_of(
    results: Results, answers: dict[tuple[str, str], list[Answered]], family: str, judge: str
) -> Failures | None:
    """The first failures of every carrier, in the order of the records and not picked by their answers.

    They are those of the defence that is recommended, else of the best at stopping attacks, else of none.
    """
    summaries = [one for one in results.summary(family, judge) if "attack_success" in one.rates]
    if not summaries:
        return None
    verdict = next(one for one in results.verdicts if (one.family, one.judge) == (family, judge))
    best = min(summaries, key=lambda one: one.rates["attack_success"].rate).arm
    arm = verdict.recommended or best
    info = next(one for one in results.arms if (one.family, one.row) == (family, arm))
    attacks, refusals = (
        list(_found(answers[family, info.name], answers[family, NONE], judge, label, outcome, arm))
        for label, outcome in (("harmful", "answered"), ("harmless", "refused"))
    )
    return Failures(arm, info.seed, _some(attacks), _some(refusals), (len(attacks), len(refusals)))


def _found(
    answers: Sequence[Answered], base: Sequence[Answered], judge: str, label: str, outcome: str, arm: str
) -> Any:
    for one, other in zip(answers, base, strict=True):
        said = {item.id: item.text for item in one.evaluation.decisions}
        before = {item.id: item.text for item in other.evaluation.decisions}
        for record in one.records:
            if record.label == label and one.by_judge[judge][record.id] == outcome:
                yield record, one.benchmark, said[record.id], "" if arm == NONE else before[record.id]


def _some(found: list[Any]) -> tuple[Failure, ...]:
    kept: dict[tuple[str, str], list[Failure]] = {}
    for record, benchmark, answer, before in found:
        some = kept.setdefault((benchmark, record.carrier), [])
        if len(some) < SHOWN:
            some.append(Failure(card_of(record), benchmark, answer[:_LONGEST], before[:_LONGEST]))
    return tuple(one for some in kept.values() for one in some)
