"""`safetykit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.options import (
    Adapters,
    Data,
    ExternalIndex,
    Json,
    Limit,
    MaxNewTokens,
    Provider,
    Swap,
    System,
    WrongBase,
)

if TYPE_CHECKING:
    from rich.console import Console


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, reference:mild / reference:severe, or export folder.")
    ],
    data: Data,
    adapter: Adapters = None,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 32,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the evaluation, decisions included.")
    ] = None,
    provider: Provider = None,
    external_index: ExternalIndex = None,
    swap: Swap = None,
    system: System = "",
    allow_wrong_base: WrongBase = False,
    as_json: Json = False,
) -> None:
    """Answer records with a checkpoint or an export. Counts per carrier; resumes where it was interrupted."""
    from ...toolkit.commands import console
    from ..runtime.sessions import CPU
    from .evaluation import evaluate_model

    with console.progress_bar("answering") as update:
        result = evaluate_model(
            model,
            data,
            adapter or [],
            split=split,
            limit=limit,
            max_new_tokens=max_new_tokens,
            out=out,
            providers=provider or CPU,
            allow_wrong_base=allow_wrong_base,
            external_index=external_index,
            swap=swap or [],
            system=system,
            progress=update,
        )
    value = result.model_dump(mode="json", exclude={"decisions"})
    console.emit(value, as_json=as_json, human=_view)


def _view(console: Console, value: dict[str, Any]) -> None:
    """What a person sees."""
    from rich.markup import escape

    from ...toolkit.commands.views import METRICS, figures, rate

    title = f"{escape(value['model'])}, split {value['split']}" + (", with a system prompt" if value["system"] else "")
    table = figures(title, *(name for _, name in METRICS), "detector AUROC")
    for row in value["rows"]:
        auroc = row["detector_auroc"]
        cells = [rate(row["metrics"].get(metric)) for metric, _ in METRICS]
        table.add_row(row["group"], *cells, "–" if auroc is None else f"{auroc:.3f}")
    console.print(table)
    console.print(
        "[dim]Shares with Wilson 95 % intervals. Look-alikes are restricted things asked about harmlessly.[/dim]"
    )
