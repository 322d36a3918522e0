"""What a plan's cells, once they are answered and judged, come to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ...adapters.artifact.policy import own_work
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import InvalidArtifact
from ...toolkit.comparison.analysis import Answered, Compared, Family, families
from ...toolkit.comparison.plan import Arm, Bench, Cell, Plan, Subject
from ...toolkit.comparison.results import ArmInfo, BenchmarkInfo, Refused, Results
from ...toolkit.comparison.telling import Choice, verdict, warnings
from ...toolkit.evaluation.result import Evaluation


def read_cell(cell: Cell) -> Evaluation:
    """The evaluation of a cell that is answered.

    Raises:
        InvalidArtifact: the file is damaged, or of other records.
    """
    advice = "Remove it, and the same command answers this cell again."
    try:
        found = Evaluation.model_validate_json(cell.path.read_bytes())
    except (ValidationError, OSError) as error:
        what = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise InvalidArtifact(f"{cell.path} is no evaluation: {what}.", advice) from None
    if [one.id for one in found.decisions] != [record.id for record in cell.bench.records]:
        raise InvalidArtifact(f"{cell.path} is an evaluation of other records.", advice)
    return found


def compared(plan: Plan) -> Compared:
    """The results of a plan whose cells are answered.

    Raises:
        InvalidArtifact: a cell is damaged.
    """
    judges, choose_on = plan.grid.judges, plan.grid.choose_on
    fitted = [arm for arm in plan.arms if not arm.refused]
    reported = [(arm, _answers(plan, arm, choose=False)) for arm in fitted]
    arms = [(_info(plan, arm, answers), answers) for arm, answers in reported]
    found = families(arms, judges, plan.grid.budgets)
    chosen: list[Family] = []
    if choose_on is not None:
        others = [(info, _answers(plan, arm, choose=True)) for arm, (info, _) in zip(fitted, arms, strict=True)]
        chosen = families(others, judges, plan.grid.budgets)
    results = Results(
        title=plan.grid.title,
        grid=plan.grid.model_dump(mode="json", by_alias=True),
        benchmarks=tuple(_benchmark(one) for one in plan.benches),
        judges=judges,
        arms=tuple(info for info, _ in arms),
        refused=tuple(
            Refused(family=arm.subject.name, arm=arm.name, reason=arm.refused) for arm in plan.arms if arm.refused
        ),
        figures=tuple(one for family in found for one in family.figures()),
        tests=tuple(one for family in found for one in family.tests()),
        carriers=tuple(one for family in found for one in family.carriers()),
        agreement=tuple(one for family in found for one in family.agreement()),
        summaries=tuple(one for family in found for one in family.summaries()),
        verdicts=(),
        choices=tuple(one for family in chosen for one in family.summaries()),
    )
    verdicts = [
        verdict(
            family,
            judge,
            results.summary(family, judge),
            {one.arm: results.tests_of(family, judge, one.arm) for one in results.summary(family, judge)},
            None if choose_on is None else Choice(choose_on, results.chosen_from(family, judge)),
        )
        for family in results.families
        for judge in judges
    ]
    results = results.model_copy(update={"verdicts": tuple(verdicts)})
    told = tuple(warnings(results, plan.grid.budgets))
    return Compared(
        results.model_copy(update={"warnings": told}), {(info.family, info.name): answers for info, answers in arms}
    )


def _answers(plan: Plan, arm: Arm, *, choose: bool) -> list[Answered]:
    return [
        Answered(cell.bench.name, read_cell(cell), cell.bench.records) for cell in plan.cells_of(arm, choose=choose)
    ]


def _benchmark(one: Bench) -> BenchmarkInfo:
    return BenchmarkInfo(
        name=one.name,
        data=one.entry.data,
        split=one.split,
        n=len(one.records),
        revision=one.revision,
        max_new_tokens=one.max_new_tokens,
        skipped=one.records.skipped,
        chooses=one.chooses,
    )


def _info(plan: Plan, arm: Arm, answers: Sequence[Answered]) -> ArmInfo:
    subject: Subject = arm.subject
    loaded = [] if not arm.adapters else _loaded(arm)
    family, name, row = subject.name, arm.name, arm.row
    if subject.entry.baseline is not None:
        family = subject.entry.baseline
        name, row = (subject.name if arm.defence.bare else f"{subject.name}+{one}" for one in (name, row))
    asked = [one.calls for answered in answers for one in answered.evaluation.decisions]
    return ArmInfo(
        family=family,
        model=subject.name,
        path=subject.entry.path,
        name=name,
        row=row,
        seed=arm.seed,
        methods=tuple(f"{one.info.method} ({one.info.variant})" for one in loaded),
        defence=arm.defence.defence or "",
        calls=sum(asked) / len(asked),
        files={
            cell.path.relative_to(plan.folder).as_posix(): hashlib.sha256(cell.path.read_bytes()).hexdigest()
            for cell in plan.cells_of(arm)
        },
    )


def _loaded(arm: Arm) -> list[Any]:
    with own_work():  # whose they are was asked when they were put on the model
        return [load_adapter(folder) for folder in arm.adapters]
