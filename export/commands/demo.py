"""`safetykit demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.options import Json, Overwrite, one_of
from ...toolkit.reference import Name

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo makes.")] = Path(
        "safetykit-demo"
    ),
    checkpoint: Annotated[str, one_of(Name, "Which reference VLM.")] = "mild",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from .demo_loop import run_demo

    with console.steps() as say:
        result = run_demo(out, checkpoint, overwrite=overwrite, progress=say)
    console.emit(result, as_json=as_json, human=_view, then=result.pop("try"))


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    from .views import comparison, parity

    console.print(
        f"[bold]safetykit demo[/bold]: {value['adapter']['method']} ({value['adapter']['variant']}) on the reference "
        f"VLM `{value['checkpoint']}`, a model organism.\n"
    )
    comparison(console, value["comparison"])
    parity(console, value["parity"])
    latency(console, value["latency"])
    console.print(
        f"\nExport: {escape(value['folder'])}\nCard:   {escape(value['card'])}\nReport: {escape(value['report'])}"
    )
    console.print(f"[dim]{value['seconds']:.0f} s in all.[/dim]")


def latency(console: Console, value: dict[str, Any]) -> None:
    """Ratios baked/unmodified beside the A/A control."""
    from ...toolkit.commands.views import figures

    table = figures("Latency, baked / unmodified", "ratio", "A/A control", "verdict")
    for phase in ("prefill", "decode"):
        found = value[phase]
        ratios = (
            f"{item['value']:.3f} [dim]({item['low']:.3f}–{item['high']:.3f})[/dim]"
            for item in (found["ratio"], found["control"])
        )
        table.add_row(phase, *ratios, found["verdict"])
    console.print(table)
