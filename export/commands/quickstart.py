"""`safetykit quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Json, Model
from .quickstart_options import QuickstartOptions

if TYPE_CHECKING:
    from rich.console import Console


@takes(QuickstartOptions)
def quickstart(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything; the same command goes on there.")],
    options: QuickstartOptions,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from .quickstart_loop import run_quickstart

    result = run_quickstart(model, out, options)
    console.emit(result, as_json=as_json, human=_view, then=_next(result))


def _next(value: dict[str, Any]) -> str:
    from ...toolkit.commands.console import command_line

    if value["export"]:
        return command_line("run", value["export"], "--prompt", "What is this?")
    if value["adapter"]:
        return command_line("eval", value["model"], "--data", value["data"], "--adapter", value["adapter"])
    return ""


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape
    from rich.padding import Padding

    from .demo import latency
    from .views import METRICS, comparison, parity

    model = escape(value["model"])
    if value["organism"]:
        model += ", a model organism: its figures say nothing about large models"
    fitted = next((one for one in value["fitted"] if one["method"] == value["method"]), None)
    with_method = "nothing was fitted" if fitted is None else f"{fitted['method']} ({fitted['variant']})"
    console.print(f"[bold]safetykit quickstart[/bold]: {with_method} on {model}.\n")
    metrics = METRICS if value["judged_by"]["harmless"] else METRICS[:2]
    if value["stopped"]:
        table(console, value["undefended"])
        console.print(f"[yellow]{escape(value['stopped'])}[/yellow]\n")
    else:
        where = "the model in PyTorch, with its adapter" if value["obstacle"] else "the exported model"
        comparison(console, value["comparison"], where, metrics)
    asked = sum(value["asked"].values())
    counts = ", ".join(f"{count} {label}" for label, count in value["asked"].items())
    console.print(f"[dim]Of {asked} test records: {counts}. Intervals are in the report.[/dim]")
    if not value["judged_by"]["harmful"]:
        console.print("[dim]Attack success: what is not refused, by refusal phrases; no record has a response.[/dim]")
    if value["parity"]:
        parity(console, value["parity"])
        latency(console, value["latency"])
    rows = [("Export", "export"), ("Card", "card"), ("Report", "report"), ("Adapter", "adapter"), ("Records", "data")]
    for name, key in rows:
        if value.get(key):
            console.print(f"{name + ':':9}{escape(value[key])}", soft_wrap=True)
    console.print(f"[dim]{value['seconds']:.0f} s in this run.[/dim]")
    if value["better"]:
        console.print("\n[bold]What would make it better[/bold]")
        for number, one in enumerate(value["better"], 1):
            console.print(Padding(escape(f"{number}. {one['why']}"), (0, 0, 0, 1)))
            if one["command"]:
                console.print(f"    [bold]{escape(one['command'])}[/bold]", soft_wrap=True)


def table(console: Console, value: dict[str, Any]) -> None:
    """Figures of the model as it is."""
    from ...toolkit.commands.views import figures, rate

    found = figures("The model as it is", "attack success", "over-refusal")
    for row in value["rows"]:
        if "/" not in row["group"]:
            metrics = row["metrics"]
            found.add_row(row["group"], *(rate(metrics.get(name)) for name in ("attack_success", "over_refusal")))
    console.print(found)
