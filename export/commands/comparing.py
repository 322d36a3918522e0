"""`safetykit compare`: a plan is checked, its adapters fitted, its cells answered and judged, and the results made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...adapters.artifact.adapter import the_detector
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import write_output
from ...adapters.artifact.policy import own_work
from ...adapters.artifact.stack import require_fitted_stack
from ...adapters.artifact.store import load_adapter, require_base
from ...adapters.errors import InvalidArtifact, UsageError
from ...toolkit.commands import console
from ...toolkit.commands.fit_call import FitCall, plan_fit
from ...toolkit.commands.fit_plan import require_layers, require_options
from ...toolkit.commands.progress import Work
from ...toolkit.comparison.analysis import Answered, Compared, families
from ...toolkit.comparison.plan import Arm, Cell, Fit, Plan, Subject
from ...toolkit.comparison.reading import part_of_grid
from ...toolkit.comparison.results import ArmInfo, BenchmarkInfo, Results
from ...toolkit.comparison.telling import verdict, warnings
from ...toolkit.data.options import ReadOptions
from ...toolkit.data.records import require_pictures
from ...toolkit.data.sources import model_path
from ...toolkit.defences.registry import DEFENCES, defended
from ...toolkit.distributed.world import from_first, is_first
from ...toolkit.evaluation.evaluate import Evaluation
from ...toolkit.evaluation.few import count_records, few_records
from ...toolkit.evaluation.judges.judge import Item, Judge, Verdict
from ...toolkit.evaluation.judges.judging import judged_by
from ...toolkit.evaluation.result import Judged
from ...toolkit.model.asking import require_answerable
from ...toolkit.model.shape import decoder_shape, require_adaptable
from .choices import EvalOptions

Say = Callable[[str], None]


def require_plan(plan: Plan) -> list[str]:
    """Refuse whatever can be refused before the first model is loaded.

    Returns:
        What to say of it all the same.

    Raises:
        SafetykitError: naming the part of the grid.
    """
    said: dict[str, None] = {}
    with part_of_grid("judges"):
        plan.grid.judging().opened()
    for bench in plan.benches:
        with part_of_grid(f"benchmarks.{bench.name}"):
            require_pictures(bench.records)
        if few := few_records(count_records(bench.records)):
            said[f"{bench.name}: {few}"] = None
    for subject in plan.subjects:
        if subject.kind == "server":
            continue
        for bench in plan.benches:
            with part_of_grid(f"models.{subject.name}, benchmarks.{bench.name}"):
                path = subject.entry.path if subject.kind == "export" else model_path(subject.entry.path)
                require_answerable(path, bench.records)
    for arm in plan.arms:
        with part_of_grid(f"defences.{arm.name}"):
            _require_defence(arm)
            _require_adapters(arm)
    for fit in plan.fits:
        with part_of_grid(f"the fit of {fit.method.name} on {fit.subject.name}"):
            said |= dict.fromkeys(f"{fit.method.name}: {one}" for one in _require_fit(fit))
    return list(said)


def _require_defence(arm: Arm) -> None:
    if arm.defence.defence is not None and arm.defence.defence not in DEFENCES:
        defended(None, arm.defence.defence)  # type: ignore[arg-type]  # which says what there is


def _require_adapters(arm: Arm) -> None:
    """Refuse adapters that are there and belong to another model or not together."""
    fitted = {fit.folder for fit in arm.fits}
    there = [folder for folder in arm.adapters if folder not in fitted]
    loaded = [load_adapter(folder) for folder in there]
    if not loaded:
        return
    path = arm.subject.entry.path
    require_adaptable(loaded, decoder_shape(model_path(path)), path, allow_wrong_base=None)
    for adapter in loaded:
        require_base(adapter, arm.subject.known, path, choice=False)
    if not fitted:
        the_detector(loaded)
        require_fitted_stack(loaded, [str(folder) for folder in there], model=path, allow=None)


def _call(fit: Fit, *, whole: bool) -> FitCall:
    inputs: dict[str, Any] = {} if fit.part.refusal is None else {"refusal": fit.part.refusal}
    if whole and fit.under:
        inputs["with"] = list(fit.under)
    reading = ReadOptions(skip_bad_rows=fit.part.skip_bad_rows) if fit.method.data == "records" else None
    return FitCall(
        fit.method,
        fit.settings,
        inputs,
        _no_base,
        fit.subject.entry.loading,
        reading,
        sweep=fit.part.sweep,
        budget=fit.part.budget,
    )


def _no_base(folder: Path) -> Any:
    raise UsageError(f"{folder} is no base of a comparison.", "Fit on an export's weights with `safetykit fit --on`.")


def _require_fit(fit: Fit) -> Sequence[str]:
    if fit.done:
        return ()
    call, model = _call(fit, whole=False), fit.subject.entry.path
    require_layers(fit.method, fit.settings, model)
    require_options(fit.method, fit.settings, call.inputs, sweep=call.sweep)
    return plan_fit(call, model, str(fit.part.data)).warnings


def make_fit(fit: Fit) -> None:
    """Fit an adapter into its folder; goes on where an interrupted one was.

    Raises:
        SafetykitError: whatever was wrong.
    """
    from ...toolkit.commands.fit_one import fit_folder  # needs torch

    given = {**fit.part.settings, **fit.settings}
    with _options(data=fit.part.data, **given), own_work(), part_of_grid(f"the fit of {fit.method.name}"):
        fit_folder(_call(fit, whole=True), fit.subject.entry.path, str(fit.part.data), fit.folder)


@contextmanager
def _options(**given: Any) -> Iterator[None]:
    """What a fitted adapter says of the options that made it: those of a fit, as if it had been typed."""
    before = console.running.options
    console.running.options = {name.replace("_", "-"): value for name, value in given.items()}
    try:
        yield
    finally:
        console.running.options = before


def answer(cell: Cell, progress: Any = None, say: Say | None = None) -> None:
    """Answer a cell into its file; goes on where an interrupted one was.

    Raises:
        SafetykitError: whatever was wrong.
    """
    from .evaluation import evaluate_model

    arm, entry = cell.arm, cell.bench.entry
    subject = arm.subject
    seen = any(record.pictured for record in cell.bench.records)
    options = EvalOptions(
        data=entry.data,
        split=entry.split,
        limit=entry.limit,
        max_new_tokens=cell.bench.max_new_tokens,
        **({"skip_bad_rows": True} if entry.skip_bad_rows else {}),
        **({"defence": arm.defence.defence} if arm.defence.defence and seen else {}),  # text alone is asked as it is
        **({"served_model": subject.entry.served_model} if subject.entry.served_model else {}),
        **{name: getattr(subject.entry.loading, name) for name in subject.entry.loading.model_fields_set},
    )
    fitted = {fit.folder for fit in arm.fits}
    own = bool(arm.adapters) and fitted == set(arm.adapters)
    trusted: AbstractContextManager[None] = own_work() if own else nullcontext()
    with part_of_grid(cell.name), trusted:
        evaluate_model(subject.entry.path, arm.adapters, options, out=cell.path, progress=progress, say=say)


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
    judges = plan.grid.judges
    arms: list[tuple[ArmInfo, list[Answered]]] = []
    for arm in plan.arms:
        cells = plan.cells_of(arm)
        answers = [Answered(cell.bench.name, read_cell(cell), cell.bench.records) for cell in cells]
        arms.append((_arm(plan, arm, answers), answers))
    found = families(arms, judges, plan.grid.budgets)
    summaries = [one for family in found for one in family.summaries()]
    results = Results(
        title=plan.grid.title,
        grid=plan.grid.model_dump(mode="json", by_alias=True),
        benchmarks=tuple(
            BenchmarkInfo(
                name=one.name,
                data=one.entry.data,
                split=one.entry.split,
                n=len(one.records),
                revision=one.revision,
                max_new_tokens=one.max_new_tokens,
                skipped=one.records.skipped,
            )
            for one in plan.benches
        ),
        judges=judges,
        arms=tuple(info for info, _ in arms),
        figures=tuple(one for family in found for one in family.figures()),
        tests=tuple(one for family in found for one in family.tests()),
        carriers=tuple(one for family in found for one in family.carriers()),
        agreement=tuple(one for family in found for one in family.agreement()),
        summaries=tuple(summaries),
        verdicts=(),
    )
    verdicts = [
        verdict(
            family,
            judge,
            results.summary(family, judge),
            {one.arm: results.tests_of(family, judge, one.arm) for one in results.summary(family, judge)},
        )
        for family in results.families
        for judge in judges
    ]
    results = results.model_copy(update={"verdicts": tuple(verdicts)})
    told = tuple(warnings(results, plan.grid.budgets))
    return Compared(
        results.model_copy(update={"warnings": told}), {(info.family, info.name): answers for info, answers in arms}
    )


def _arm(plan: Plan, arm: Arm, answers: Sequence[Answered]) -> ArmInfo:
    subject: Subject = arm.subject
    loaded = [] if not arm.adapters else _loaded(arm)
    family, name = subject.name, arm.name
    if subject.entry.baseline is not None:
        family = subject.entry.baseline
        name = subject.name if arm.defence.bare else f"{subject.name}+{arm.name}"
    asked = [one.calls for answered in answers for one in answered.evaluation.decisions]
    return ArmInfo(
        family=family,
        model=subject.name,
        path=subject.entry.path,
        name=name,
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


class _Kept(Judge):
    """A judge that repeats what it said of an evaluation."""

    def __init__(self, said: Judged, exact: bool) -> None:
        self.name, self._said = said.judge, said
        self.exact = exact  # type: ignore[misc]

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        said = self._said
        return [
            Verdict(said.outcomes[record.id], said.scores.get(record.id), said.failures.get(record.id, ""))
            for record, _ in items
        ]


def judge_cells(plan: Plan, doing: Work) -> None:
    """Have every judge judge the answers of every cell, a judge at a time; what is judged is not judged again.

    Raises:
        SafetykitError: a judge cannot be used.
    """
    judges = plan.grid.judging().opened(doing.hold)
    for at, judge in enumerate(judges):
        doing(f"judging: {judge.name}")
        for number, cell in enumerate(plan.cells):
            found = read_cell(cell)
            if all(one.judge != judge.name for one in found.judged):
                known = {one.judge: one for one in found.judged}
                before = [_Kept(known.pop(one.name), one.exact) for one in judges[:at]]
                others = [_Kept(one, "exact" in one.rows[0].metrics) for one in known.values()]  # of another grid
                with part_of_grid(cell.name):
                    judged = judged_by(found, cell.bench.records, [*before, judge, *others])
                if is_first():
                    write_output(cell.path, canonical_json(judged.model_dump(mode="json")))
            doing.count(number + 1, len(plan.cells))
        from_first(None)  # nobody reads on before the last is written
