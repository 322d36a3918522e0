"""`safetykit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Adapters, Json, Model
from ..pipeline.options import ExportOptions

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
@takes(ExportOptions)
def export(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Export folder to write.")],
    options: ExportOptions,
    adapter: Adapters = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX (the only format).")] = True,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from ...toolkit.data.records import BAD_ROWS
    from ...toolkit.evaluation.few import few_records

    if adapter:
        _require_stack(model, adapter, options)
    from ..pipeline.export import export_onnx

    with console.steps() as say:
        result = export_onnx(model, adapter or [], out, options, progress=say)
    for warning in result.parity.warnings:
        console.warn(warning)
    if result.comparison and (skipped := result.comparison.data.counts.get(BAD_ROWS)):
        console.warn(f"{BAD_ROWS}: {skipped}.")
    if result.comparison and (few := few_records(result.comparison.data.counts)):
        console.warn(few)
    then = console.command_line("run", out, "--prompt", "What is this?")
    console.emit(result.describe(), as_json=as_json, human=_view, then=then)


def _require_stack(model: str, adapters: list[Path], options: ExportOptions) -> None:
    """Refuse adapters that do not belong together before all that exports is loaded; the plan looks once more.

    Raises:
        UsageError: a detector was fitted under other correctors.
    """
    from ...adapters.artifact.stack import require_fitted_stack
    from ...adapters.artifact.store import load_adapter

    require_fitted_stack(
        [load_adapter(folder) for folder in adapters],
        [str(folder) for folder in adapters],
        model=model,
        data=options.data or "DATA",
        allow=options.allow_uncorrected_detector,
    )


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    from .views import comparison, parity

    if value["comparison"]:
        comparison(console, value["comparison"])
    parity(console, value["parity"])
    console.print(
        f"Export: {escape(value['folder'])}\nCard:   {escape(value['card'])}\nReport: {escape(value['report'])}"
    )
