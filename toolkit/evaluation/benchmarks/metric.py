"""What a benchmark's metric is, and the registry of them by the importers' names.

A record is of a benchmark if its id begins with the name of its importer, as `safetykit data import` writes it; forms
that `safetykit data carriers` drew of it are not, for their publishers never counted them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...data.record import Record
from ..judge import Outcome
from ..result import Figure

Figures = dict[str, dict[str, Figure]]  # by group, `all` first, and by name


@dataclass(frozen=True)
class Answered:
    """A record with its answer.

    Attributes:
        outcome: by the judge at hand; None without a verdict.
        grade: its score from 0 to 1, if it gives any.
        scores: of detectors and gates, as the decision has them.
    """

    record: Record
    text: str
    outcome: Outcome | None = None
    grade: float | None = None
    scores: Mapping[str, float] | None = None


Count = Callable[[Sequence[Answered]], tuple[Figures, str]]


@dataclass(frozen=True)
class Metric:
    """How a benchmark is counted.

    Attributes:
        name: of its importer.
        count: answers → figures, and what is missing or differs from what was published.
        judged: whether a judge's outcomes are counted; otherwise its own rule reads the answers.
        graded: what the score of a judge must say, as ``Judge.graded``; empty where no score is counted.
    """

    name: str
    count: Count
    judged: bool = False
    graded: str = ""


METRICS: dict[str, Metric] = {}


def metric(*names: str, judged: bool = False, graded: str = "") -> Callable[[Count], Count]:
    """A decorator for the function that counts the benchmarks of these importers."""

    def register(count: Count) -> Count:
        METRICS.update({name: Metric(name, count, judged, graded) for name in names})
        return count

    return register


def grouped(answered: Iterable[Answered], by: Callable[[Answered], str]) -> dict[str, list[Answered]]:
    """All of them under ``all``, and those of each group, in the order of the groups' names."""
    found = list(answered)
    groups: dict[str, list[Answered]] = {}
    for one in found:
        groups.setdefault(by(one), []).append(one)
    return {"all": found} | {name: groups[name] for name in sorted(groups) if name and len(groups) > 1}


def share(found: Iterable[bool]) -> Figure:
    """The share that is true, of at least one."""
    given = list(found)
    return Figure.share(sum(given), len(given))
