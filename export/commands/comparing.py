"""`safetykit compare`: a plan is checked, its adapters fitted, its cells answered and judged, and the results made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ...adapters.artifact.adapter import the_detector
from ...adapters.artifact.held import beside, remove
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import write_output
from ...adapters.artifact.policy import own_work
from ...adapters.artifact.stack import require_fitted_stack
from ...adapters.artifact.store import load_adapter, require_base
from ...adapters.errors import BudgetNotKept, UsageError
from ...toolkit.commands import console
from ...toolkit.commands.fit_call import FitCall, plan_fit
from ...toolkit.commands.fit_plan import require_budget, require_layers, require_options
from ...toolkit.commands.progress import Work
from ...toolkit.comparison.plan import Arm, Cell, Fit, Plan, refusal_of, refused_at
from ...toolkit.comparison.reading import part_of_grid
from ...toolkit.data.options import ReadOptions
from ...toolkit.data.records import require_pictures
from ...toolkit.data.sources import model_path
from ...toolkit.defences.registry import DEFENCES, defended
from ...toolkit.distributed.world import from_first, is_first
from ...toolkit.evaluation.few import count_records, few_records
from ...toolkit.evaluation.judges.judge import Item, Judge, Verdict
from ...toolkit.evaluation.judges.judging import judged_by
from ...toolkit.evaluation.result import Judged
from ...toolkit.model.asking import require_answerable
from ...toolkit.model.shape import decoder_shape, require_adaptable
from .choices import EvalOptions
from .comparison_results import read_cell

Models = Callable[..., Any] | None  # :class:`safetykit.toolkit.model.kept.Kept`, which needs torch


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
        with part_of_grid(f"benchmarks.{bench.called}"):
            require_pictures(bench.records)
        if few := few_records(count_records(bench.records)):
            said[f"{bench.called}: {few}"] = None
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
        budget=fit.part.budget if fit.part.budget.given else None,
    )


def _no_base(folder: Path) -> Any:
    raise UsageError(f"{folder} is no base of a comparison.", "Fit on an export's weights with `safetykit fit --on`.")


def _require_fit(fit: Fit) -> Sequence[str]:
    if fit.done:
        return ()
    call, model = _call(fit, whole=False), fit.subject.entry.path
    require_layers(fit.method, fit.settings, model)
    require_options(fit.method, fit.settings, call.inputs, sweep=call.sweep)
    if call.budget is not None:
        require_budget(fit.method, fit.settings, call.budget, sweep=call.sweep)
    return plan_fit(call, model, str(fit.part.data)).warnings


def make_fit(fit: Fit, models: Models = None) -> None:
    """Fit an adapter into its folder; goes on where an interrupted one was.

    If no choice keeps its budget, this is kept in the place of the adapter, and what stands on it is not fitted either.

    Args:
        models: gives the model of a folder; by default it is loaded.

    Raises:
        SafetykitError: whatever was wrong.
    """
    from ...toolkit.commands.fit_one import fit_folder  # needs torch

    if any(refused_at(folder) for folder in fit.under):
        return
    given = {**fit.settings, **(fit.part.budget.recorded_values if fit.part.budget.given else {})}
    if fit.part.sweep:
        given["sweep"] = True
    with _options(data=fit.part.data, **given), own_work(), part_of_grid(f"the fit of {fit.method.name}"):
        call = _call(fit, whole=True)
        try:
            fit_folder(call, fit.subject.entry.path, str(fit.part.data), fit.folder, loader=models)
        except BudgetNotKept as error:
            if is_first():
                write_output(refusal_of(fit.folder), canonical_json({"refused": error.message}))
                remove(beside(fit.folder, "sweep.jsonl"))
            from_first(None)
            console.warn(f"{fit.method.name} on {fit.subject.name} is left out. {error.message}")


@contextmanager
def _options(**given: Any) -> Iterator[None]:
    """What a fitted adapter says of the options that made it: those of a fit, as if it had been typed."""
    before = console.running.options
    console.running.options = {name.replace("_", "-"): value for name, value in given.items()}
    try:
        yield
    finally:
        console.running.options = before


def answer(cell: Cell, models: Models = None, progress: Any = None) -> None:
    """Answer a cell into its file; goes on where an interrupted one was.

    Args:
        models: gives the model of a folder; by default it is loaded.

    Raises:
        SafetykitError: whatever was wrong.
    """
    from .evaluation import evaluate_model

    arm, entry = cell.arm, cell.bench.entry
    if arm.refused:
        return
    subject = arm.subject
    seen = any(record.pictured for record in cell.bench.records)
    options = EvalOptions(
        data=entry.data,
        split=cell.bench.split,
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
        evaluate_model(subject.entry.path, arm.adapters, options, out=cell.path, progress=progress, loader=models)


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
        cells = [cell for cell in plan.cells if not cell.arm.refused]
        for number, cell in enumerate(cells):
            found = read_cell(cell)
            if all(one.judge != judge.name for one in found.judged):
                known = {one.judge: one for one in found.judged}
                before = [_Kept(known.pop(one.name), one.exact) for one in judges[:at]]
                others = [_Kept(one, "exact" in one.rows[0].metrics) for one in known.values()]  # of another grid
                with part_of_grid(cell.name):
                    judged = judged_by(found, cell.bench.records, [*before, judge, *others])
                if is_first():
                    write_output(cell.path, canonical_json(judged.model_dump(mode="json")))
            doing.count(number + 1, len(cells))
        from_first(None)  # nobody reads on before the last is written
