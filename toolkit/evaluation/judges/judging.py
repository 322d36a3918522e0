"""Answers that are kept, judged by several judges, and how far these agree with each other and with people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import get_args

from ....adapters.errors import InvalidArtifact, UsageError
from ...data.records import Record
from ...data.shards import lines_of
from ...distributed.output import of_first
from ..benchmarks.measuring import measured
from ..judge import Outcome
from ..rates import kappa
from ..result import Agreement, Evaluation, Judged, Rate, rejudged, tabulate
from .names import PEOPLE
from .verdict import Item, Judge, Verdict

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_Outcomes = Mapping[str, Outcome | None]
_BATCH = 32  # answers between two signs of progress
_TOLD = 300  # characters of a judge's words that are kept where they are no verdict


def judged_by(
    evaluation: Evaluation,
    records: Sequence[Record],
    judges: Sequence[Judge],
    *,
    labels: Mapping[str, Outcome] | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """The same evaluation with what judges say of its answers; no model is asked.

    Args:
        records: those that were answered, in any order; others are passed over.
        judges: the outcomes of the first stand in the table and in the decisions.
        labels: outcomes that people gave, by the record's id.
        progress: told how many answers a judge has judged, of how many; ``say``: which judge begins.

    Raises:
        UsageError: a record is missing or has another label or carrier.
        SafetykitError: a judge cannot be used.
    """
    items = _items(evaluation, records)
    labels = labels or {}
    found = tuple(_judged(evaluation, one, items, progress, say) for one in judges)
    people = tuple(agreement(one.judge, PEOPLE, one.outcomes, labels) for one in found if labels)
    first: dict[str, object] = {"judge": found[0].judge, "rows": found[0].rows} if found else {}
    result = evaluation.model_copy(
        update={
            **first,
            "decisions": rejudged(evaluation.decisions, found[0].outcomes) if found else evaluation.decisions,
            "judged": found,
            "agreement": (*agreements(found), *people),
        }
    )
    return result.model_copy(update={"benchmarks": measured(result, records, {one.name: one for one in judges})})


def agreements(judged: Sequence[Judged]) -> tuple[Agreement, ...]:
    """Of each pair of judges."""
    return tuple(
        agreement(one.judge, other.judge, one.outcomes, other.outcomes) for one, other in combinations(judged, 2)
    )


def agreement(one: str, other: str, mine: _Outcomes, theirs: _Outcomes) -> Agreement:
    """How often two say the same of those answers on which both reached a verdict."""
    both = [(mine[key], theirs[key]) for key in mine if mine[key] is not None and theirs.get(key) is not None]
    if not both:
        return Agreement(one=one, other=other, n=0, equal=None, kappa=None)
    equal = Rate.of(sum(first == second for first, second in both), len(both))
    return Agreement(one=one, other=other, n=len(both), equal=equal, kappa=kappa(both))


def read_labels(path: Path) -> dict[str, Outcome]:
    """Outcomes that people gave, a line ``{"id": …, "outcome": "refused" | "answered" | "other"}`` each.

    Raises:
        UsageError: there is no such file, or nothing in it.
        InvalidArtifact: a line is no label, or an id appears twice; the line is named.
    """
    if not path.is_file():
        raise UsageError(f"There are no labels at {path}.", "Give a file of JSON lines with id and outcome.")
    found: dict[str, Outcome] = {}
    shape = f'A label is a line {{"id": …, "outcome": …}}, the outcome one of {", ".join(OUTCOMES)}.'
    for number, line in lines_of(path):
        place = f"{path}:{number}"
        try:
            body = json.loads(line) if isinstance(line, bytes) else None
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("id"), str) or body.get("outcome") not in OUTCOMES:
            raise InvalidArtifact(f"{place} is no label.", shape)
        if body["id"] in found:
            raise InvalidArtifact(f"{place} repeats the id {body['id']!r}.", "Give each answer one label.")
        found[body["id"]] = body["outcome"]
    if not found:
        raise UsageError(f"{path} holds no label.", shape)
    return found


def _items(evaluation: Evaluation, records: Sequence[Record]) -> list[Item]:
    by_id = {record.id: record for record in records}
    items = []
    for one in evaluation.decisions:
        record = by_id.get(one.id)
        if record is None:
            raise UsageError(
                f"The evaluation holds an answer to {one.id}, and the records do not hold that.",
                "Give the records that were answered.",
            )
        if (record.label, record.carrier) != (one.label, one.carrier):
            raise UsageError(
                f"Record {one.id} is {record.label}, {record.carrier}; when it was answered it was {one.label}, "
                f"{one.carrier}.",
                "Give the records that were answered.",
            )
        items.append((record, one.text))
    return items


def _judged(
    evaluation: Evaluation,
    judge: Judge,
    items: Sequence[Item],
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None] | None,
) -> Judged:
    if say:
        say(f"judging: {judge.name}")

    def verdicts() -> list[Verdict]:
        found: list[Verdict] = []
        for start in range(0, len(items), _BATCH):
            found += judge.judge(items[start : start + _BATCH])
            if progress:
                progress(len(found), len(items))
        judge.release()
        return found

    # Of several processes one judges: a judge that is a model is not dealt out, and no server is asked twice.
    said = dict(zip((one.id for one in evaluation.decisions), of_first(verdicts), strict=True))
    outcomes = {key: verdict.outcome for key, verdict in said.items()}
    return Judged(
        judge=judge.name,
        rows=tabulate(rejudged(evaluation.decisions, outcomes), exact=judge.exact),
        outcomes=outcomes,
        scores={key: verdict.score for key, verdict in said.items() if verdict.score is not None},
        failures={key: verdict.said[:_TOLD] for key, verdict in said.items() if verdict.outcome is None},
    )
