"""`safetykit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Model

if TYPE_CHECKING:
    from rich.console import Console


def inspect(
    model: Model,
    fingerprint: Annotated[bool, typer.Option("--fingerprint", help="Also read and hash every weight.")] = False,
    as_json: Json = False,
) -> None:
    from ...adapters.errors import UsageError
    from ..data.sources import is_export, model_path
    from ..families import exportable
    from ..model.vlm import VLM
    from . import console

    if is_export(Path(model)):
        raise UsageError(
            f"{model} is an export, not a checkpoint.",
            f"`safetykit verify {model}` checks it; its README.md is its card.",
        )
    path = model_path(model)
    with console.steps("reading"):
        vlm = VLM.without_weights(path)
        found = vlm.describe(fingerprint=fingerprint)
    then = console.command_line("fit", "vlm-guard", model, "--data", "RECORDS", "-o", "adapter")
    value = {**found, "export": exportable(vlm.model.config)}
    console.emit(value, as_json=as_json, human=_view, then=then)


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    from .views import facts

    plain = [site for site in value["sites"] if not site.startswith("decoder.")]
    layers = f"decoder.layers.0 … decoder.layers.{value['n_layers'] - 1} (each with .attn and .mlp)"
    export = value["export"]
    rows = [
        ("architecture", value["architecture"]),
        ("decoder", f"{value['n_layers']} layers of width {value['d_model']}, vocabulary {value['vocabulary']}"),
        ("parameters", f"{value['parameters']:,} ({value['dtype']})"),
        *((name, part or "none") for name, part in value["parts"].items()),
        ("sites", f"{layers}, {', '.join(plain)}"),
        ("fingerprint", value["fingerprint"] or "not computed: --fingerprint reads every weight"),
        ("export", f"yes, as {export['family']}" if export["supported"] else f"no: {escape(export['reason'])}"),
    ]
    if export["supported"]:
        slow = export["attention"]
        rows.append(("attention", f"many nodes a layer: {slow}" if slow else "one node a layer (GroupQueryAttention)"))
    if value["model_organism"]:
        rows.append(("note", "a model organism: its figures say nothing about large models"))
    facts(console, escape(value["path"]), rows)
