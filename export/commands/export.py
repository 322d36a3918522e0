"""`safetykit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.options import (
    Adapters,
    ExternalIndex,
    Json,
    Limit,
    MaxNewTokens,
    MaybeData,
    Model,
    Overwrite,
    Provider,
    WrongBase,
)

if TYPE_CHECKING:
    from rich.console import Console


def export(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Export folder to write.")],
    adapter: Adapters = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX (the only format).")] = True,
    data: MaybeData = None,
    split: Annotated[str, typer.Option(help="Which split decisions are compared on.")] = "test",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 32,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4; int8 with --base-onnx.")] = "fp32",
    mode: Annotated[
        str,
        typer.Option(help="bake beside the base's weights, fold into them (affine ops), or hot-swap, open to others."),
    ] = "bake",
    base_onnx: Annotated[Path | None, typer.Option(help="Put the adapter into these base graphs.")] = None,
    provider: Provider = None,
    base_model: Annotated[str | None, typer.Option(help="How the card calls the base, such as org/name.")] = None,
    base_license: Annotated[str | None, typer.Option(help="Licence of the base, for the card.")] = None,
    layout: Annotated[
        str, typer.Option(help="For which runtime: onnx (plain files), transformers.js, genai or triton.")
    ] = "onnx",
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Have the graph itself force a detector's refusals.")
    ] = False,
    external_index: ExternalIndex = None,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Match thresholds to the graphs, on calibration records of --data."),
    ] = False,
    max_flips: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of records whose decision may flip; by default 0, at fp16 0.002, at int4 0.2."
        ),
    ] = None,
    allow_wrong_base: WrongBase = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bake adapters into ONNX graphs.

    The folder appears only if parity with PyTorch holds. With --data, decisions are compared on those records and
    the card gets its evaluation.
    """
    from ...toolkit.commands import console
    from ..runtime.sessions import CPU
    from .evaluation import export_with_documents

    with console.steps() as say:
        result = export_with_documents(
            model,
            out,
            adapter or [],
            data=data,
            split=split,
            limit=limit,
            max_new_tokens=max_new_tokens,
            precision=precision,
            mode=mode,
            base_onnx=base_onnx,
            providers=provider or CPU,
            max_flips=max_flips,
            recalibrate=recalibrate,
            allow_wrong_base=allow_wrong_base,
            enforce=enforce,
            layout=layout,
            external_index=external_index,
            overwrite=overwrite,
            base_model=base_model,
            base_license=base_license,
            progress=say,
        )
    console.emit(result, as_json=as_json, human=_view)


def _view(console: Console, value: dict[str, Any]) -> None:
    """What a person sees."""
    from rich.markup import escape

    from .views import comparison, parity

    if value["comparison"]:
        comparison(console, value["comparison"])
    parity(console, value["parity"])
    console.print(
        f"Export: {escape(value['folder'])}\nCard:   {escape(value['card'])}\nReport: {escape(value['report'])}"
    )
