"""The work of `safetykit compare`, once its grid is read: what is left of it is done, and everything is written."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...adapters.artifact.held import goes_on_from
from ...adapters.artifact.manifest import dump_sealed
from ...adapters.artifact.names import located
from ...adapters.artifact.output import claimed_file, write_output
from ...adapters.errors import UsageError
from ...toolkit.commands import console
from ...toolkit.commands.progress import Work
from ...toolkit.comparison.grid import Grid
from ...toolkit.comparison.plan import ADAPTERS, CELLS, Plan, Subject
from ...toolkit.comparison.planning import plan_of
from ...toolkit.distributed.output import by_first, of_first
from ...toolkit.distributed.world import is_first
from .comparing import answer, judge_cells, make_fit, require_plan
from .comparison_results import compared

RESULTS = "results.json"


def planned(grid: Grid, out: Path, say: Any) -> Plan:
    """The plan of a grid in a folder, with everything refused that can be before a model is loaded.

    Raises:
        SafetykitError: see :func:`.comparing.require_plan`.
    """
    folder = located(out)
    of_first(lambda: _require_folder(folder))
    plan = plan_of(grid, folder)
    say("checking")
    for said in require_plan(plan):
        console.warn(said)
    return plan


def _require_folder(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UsageError: see above.
    """
    if folder.is_file():
        raise UsageError(f"{folder} is a file, not a folder.", "Choose another output.")
    if not folder.is_dir() or any((folder / name).exists() for name in (RESULTS, CELLS)):
        return
    strange = [path.name for path in folder.iterdir() if path.name != ADAPTERS and path.name[0] != "."]
    if strange:
        raise UsageError(f"{folder} holds {sorted(strange)[0]}, which no comparison wrote.", "Choose another folder.")


def run(plan: Plan, config: Path, jobs: int) -> dict[str, Any]:
    """Fit, answer, judge, and write the report.

    Raises:
        SafetykitError: whatever was wrong; what is finished is kept, and the same command goes on.
    """
    results = plan.folder / RESULTS
    claim = claimed_file(results, overwrite=True, keys=("schema_version", "arms", "verdicts"))
    with goes_on_from(plan.folder / CELLS), by_first(claim):
        if jobs > 1:
            with console.work() as doing:
                _shared(plan, config, jobs, doing)
        else:
            _alone(plan)
        with console.work() as doing:
            judge_cells(plan, doing)
            doing("comparing")
            found = compared(plan)
            doing("drawing")
            if is_first():
                from ..document.comparison.report import documents

                for name, data in documents(found).items():
                    write_output(plan.folder / name, data)
                write_output(results, dump_sealed(found.results))
    value: dict[str, Any] = json.loads(dump_sealed(found.results))
    return {**value, "folder": str(plan.folder), "report": str(plan.folder / "report.html")}


def _alone(plan: Plan) -> None:
    """Model by model, each of which is loaded once: its fits, then its cells."""
    fits = [fit for fit in plan.fits if not fit.done]
    cells = [cell for cell in plan.cells if not cell.done]
    for subject in plan.subjects:
        with _models(subject) as models:
            for at, fit in enumerate(fits):
                if fit.subject is subject:
                    console.note(f"fit {at + 1} of {len(fits)}: {fit.method.name} on {subject.name}")
                    make_fit(fit, models)
            with console.work() as doing:
                for at, cell in enumerate(cells):
                    if cell.arm.subject is subject:
                        doing(f"{at + 1} of {len(cells)}: {cell.name}")
                        answer(cell, models, progress=doing.count)


def _models(subject: Subject) -> AbstractContextManager[Any]:
    """What keeps a checkpoint loaded; exports and servers need no torch."""
    if subject.kind != "checkpoint":
        return nullcontext()
    from ...toolkit.model.kept import keeping

    return keeping()


def _shared(plan: Plan, config: Path, jobs: int, doing: Work) -> None:
    """Fits that stand on others come after them; then all cells at once."""
    from .workers import Task, Workers

    fits = [fit for fit in plan.fits if not fit.done]
    cells = [cell for cell in plan.cells if not cell.done]
    if not fits and not cells:
        return
    total, count = len(fits) + len(cells), 0

    def done(task: Task) -> None:
        nonlocal count
        count += 1
        doing.count(count, total)

    doing("fitting and answering")
    with Workers(config.resolve(), plan.folder, min(jobs, max(len(fits), len(cells)))) as workers:
        made = {fit.folder for fit in plan.fits if fit.done}
        while fits:
            ready = [fit for fit in fits if {one for one in fit.under if one not in made} <= _given(plan)]
            workers.run([("fit", str(fit.folder)) for fit in ready], done)
            made |= {fit.folder for fit in ready}
            fits = [fit for fit in fits if fit not in ready]
        workers.run([("cell", str(cell.path)) for cell in cells], done)


def _given(plan: Plan) -> set[Path]:
    """Adapters that nobody fits here."""
    return {folder for arm in plan.arms for folder in arm.adapters} - {fit.folder for fit in plan.fits}
