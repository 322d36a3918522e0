"""`safetykit compare`: models × defences × benchmarks × judges, from a grid to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.options import Json
from ...toolkit.distributed.job import launched, sharing

if TYPE_CHECKING:
    from rich.console import Console

    from ...toolkit.comparison.plan import Plan


@reads_artifacts
@sharing
def compare(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file: the grid that is compared.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for answers, adapters and the report; it goes on there.")
    ] = None,
    init: Annotated[Path | None, typer.Option("--init", help="Write a grid to begin with, and end.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be fitted and answered, and end.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Processes that fit and answer at once.")] = 1,
    as_json: Json = False,
) -> None:
    from ...adapters.errors import UsageError
    from ...toolkit.commands import console
    from ...toolkit.comparison.grid import load_grid

    if init is not None:
        if (given := [name for name, one in (("--config", config), ("--out", out)) if one]) or plan or jobs > 1:
            name = (given or ["--plan" if plan else "--jobs"])[0]
            raise UsageError(f"{name} does nothing with --init.", "Leave it out; --init writes one file.")
        _begin(init, as_json)
        return
    if config is None:
        raise UsageError(
            "No grid is given.",
            "Name one with --config; `safetykit compare --init grid.yaml` writes one to begin with.",
        )
    if jobs > 1 and launched() > 1:
        raise UsageError("A launcher's processes share the work already, so --jobs does nothing.", "Leave it out.")
    grid, _ = load_grid(config)
    if out is None:
        raise UsageError("No folder for results is given.", "Name one with -o.")
    from .comparison_run import planned, run

    with console.work("reading") as doing:
        found = planned(grid, out, doing)
    if plan:
        console.emit(_plan_value(found), as_json=as_json, human=_plan_view)
        return
    console.note(_told(found))
    value = run(found, config, jobs)
    console.emit(value, as_json=as_json, human=_view)


def _begin(path: Path, as_json: bool) -> None:
    from ...adapters.artifact.output import claimed_file, write_output
    from ...toolkit.commands import console
    from ...toolkit.comparison.template import TEMPLATE

    with claimed_file(path):
        write_output(path, TEMPLATE.encode())
    value = {"grid": str(path)}
    then = console.command_line("compare", "--config", path, "-o", "comparison")
    console.emit(value, as_json=as_json, human=lambda view, one: view.print(f"A grid → {one['grid']}"), then=then)


def _plan_value(plan: Plan) -> dict[str, Any]:
    cells = [
        {
            "model": cell.arm.subject.name,
            "defence": cell.arm.name,
            "benchmark": cell.bench.called,
            "records": len(cell.bench.records),
            "done": cell.done,
            "file": str(cell.path),
        }
        for cell in plan.cells
    ]
    fits = [
        {"model": fit.subject.name, "method": fit.method.name, "adapter": str(fit.folder), "done": fit.done}
        for fit in plan.fits
    ]
    left = [cell for cell in cells if not cell["done"]]
    return {
        "cells": cells,
        "fits": fits,
        "judges": list(plan.grid.judges),
        "answers_left": sum(cell["records"] for cell in left),
        "cells_left": len(left),
        "fits_left": sum(not fit["done"] for fit in fits),
        "not_of_this_grid": [str(path) for path in plan.strangers()],
    }


def _told(plan: Plan) -> str:
    """The plan in a line or two, before work begins."""
    value = _plan_value(plan)
    fits = f"{value['fits_left']} adapters to fit, " if value["fits_left"] else ""
    said = (
        f"{fits}{value['cells_left']} of {len(value['cells'])} cells to answer, {value['answers_left']:,} answers; "
        f"judges: {', '.join(value['judges'])}."
    )
    if strange := len(value["not_of_this_grid"]):
        said += f"\n{strange} cells in {plan.folder} are of other grids; they are kept and not reported."
    return said


def _plan_view(console: Console, value: dict[str, Any]) -> None:
    from ...toolkit.commands.views import figures

    table = figures("What is compared", "defence", "benchmark", "records", "")
    for cell in value["cells"]:
        table.add_row(
            cell["model"], cell["defence"], cell["benchmark"], str(cell["records"]), "done" if cell["done"] else ""
        )
    console.print(table)
    if value["fits"]:
        table = figures("What is fitted", "method", "")
        for fit in value["fits"]:
            table.add_row(fit["model"], fit["method"], "done" if fit["done"] else "")
        console.print(table)
    console.print(f"{value['answers_left']:,} answers are left to give; judges: {', '.join(value['judges'])}.")


def _view(console: Console, value: dict[str, Any]) -> None:
    from rich.markup import escape

    from ...toolkit.commands.views import figures

    for verdict in value["verdicts"]:
        console.print(f"[bold]{escape(verdict['judge'])}[/bold]: {escape(verdict['sentence'])}")
    table = figures("By the first judge", "attack success", "worst carrier", "over-refusal", "exact answers", "front")
    for one in value["summaries"]:
        if one["judge"] != value["judges"][0]:
            continue
        rates = [one["rates"].get(name) for name in ("attack_success", "over_refusal", "exact")]
        cells = ["–" if rate is None else f"{100 * rate['rate']:.1f} %" for rate in rates]
        worst = "–" if one["worst"] is None else f"{100 * one['worst']['rate']:.1f} % {one['worst_group']}"
        cells.insert(1, worst)
        table.add_row(f"{one['family']}, {one['arm']}", *cells, "yes" if one["on_front"] else "")
    console.print(table)
    for said in value["warnings"]:
        console.print(f"- {escape(said)}")
    console.print(f"Report: {value['report']}", markup=False)
