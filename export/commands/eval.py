"""`safetykit eval`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Adapters, Json
from ...toolkit.distributed.job import sharing
from .choices import EvalOptions

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
@sharing
@takes(EvalOptions)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint (folder or id), reference:mild / reference:severe, export folder, or address of a server."
        ),
    ],
    options: EvalOptions,
    adapter: Adapters = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the evaluation, decisions included.")
    ] = None,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from ...toolkit.commands.evaluation_views import shown
    from ...toolkit.data.records import BAD_ROWS
    from ...toolkit.evaluation.few import few_records
    from .evaluation import evaluate_model
    from .kept_budget import kept_budgets

    with console.work() as doing:
        result = evaluate_model(
            model,
            adapter or [],
            options,
            out=out,
            progress=doing.count,
            say=doing,
            waiting=doing.hold,
            judging=doing.aside,
        )
    if options.allow_uncorrected_detector:
        console.warn("a detector was accepted although it may not have been fitted under the correctors beside it.")
    if result.skipped_rows:
        console.warn(f"{BAD_ROWS}: {result.skipped_rows}.")
    if short := [one.dropped_turns for one in result.decisions if one.dropped_turns]:
        console.warn(f"{len(short)} conversations are too long: their first turns were dropped, {sum(short)} in all.")
    answered = Counter(f"{result.split}/{one.carrier}/{one.label}" for one in result.decisions)
    if few := few_records(answered):
        console.warn(few)
    budgets = kept_budgets(adapter or [], options.records, result.decisions)
    value = {**shown(result), **({"budgets": budgets} if budgets else {}), "throughput": doing.throughput()}
    console.note_pace(value["throughput"])
    console.emit(value, as_json=as_json, human=_view, then=_next(model, adapter or [], options))


def _next(model: str, adapters: list[Path], options: EvalOptions) -> str:
    """What usually follows: an adapter for a bare model, an export for adapters, a check for an export."""
    from ...toolkit.commands.console import command_line
    from ...toolkit.data.sources import is_address, is_export

    if is_address(model):
        return command_line("verify", "export", "--canary", "--server", model)
    data = options.data
    if is_export(Path(model)):
        return command_line("verify", model)
    if not adapters:
        return command_line("fit", "vlm-guard", model, "--data", data, "-o", "adapter") if _fits(options) else ""
    stack = [word for folder in adapters for word in ("--adapter", folder)]
    names = ("allow_wrong_base", "allow_uncorrected_detector")
    accepted = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    return command_line("export", model, *stack, "--data", data, *accepted, "-o", "export")


def _fits(options: EvalOptions) -> bool:
    """Whether there is anything to fit on: benchmarks and attacked records have a split to measure on alone."""
    from ...adapters.errors import UsageError

    try:
        return bool(options.but(split="fit", limit=None).records())
    except UsageError:
        return False


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the evaluation, and whether budgets held, in the terminal."""
    from rich.markup import escape

    from ...toolkit.commands.evaluation_views import evaluation
    from .kept_budget import told

    evaluation(console, value)
    for found in value.get("budgets", ()):
        console.print(escape(told(found)))
