"""`safetykit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Model

if TYPE_CHECKING:
    from rich.console import Console

    from ..model.vlm import VLM


def inspect(
    model: Model,
    fingerprint: Annotated[bool, typer.Option("--fingerprint", help="Also read and hash every weight.")] = False,
    as_json: Json = False,
) -> None:
    from ...adapters.errors import UsageError
    from ..data.sources import is_export, model_path
    from . import console

    if is_export(Path(model)):
        raise UsageError(
            f"{model} is an export, not a checkpoint.",
            f"`safetykit verify {model}` checks it; its README.md is its card.",
        )
    model_path(model)  # refused before anything is said to be read
    with console.steps("reading"):
        value = describe(model, fingerprint=fingerprint)
    then = console.command_line("fit", "vlm-guard", model, "--data", "RECORDS", "-o", "adapter")
    console.emit(value, as_json=as_json, human=_view, then=then)


def describe(model: str, *, fingerprint: bool = False) -> dict[str, Any]:
    """What is shown of a checkpoint.

    Args:
        fingerprint: compute it, which reads every weight.

    Raises:
        UsageError: there is none, or it holds no VLM.
    """
    from ..families import exportable

    vlm = _opened(model)
    return {**vlm.describe(fingerprint=fingerprint), "export": exportable(vlm.model.config)}


def _opened(model: str) -> VLM:
    """The model; a quantised one as it was before, which takes no package and no weights."""
    from ..model.inputs import InputProcessor
    from ..model.peft_folder import checkpoint_path
    from ..model.quantised import quantisation_of, skeleton
    from ..model.vlm import VLM

    folder = checkpoint_path(model)
    inputs = InputProcessor.from_pretrained(folder)
    if quantisation_of(inputs.config) is None:
        return VLM.without_weights(folder)
    return VLM(skeleton(folder), inputs, path=folder)


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    from .views import facts

    plain = [site for site in value["sites"] if not site.startswith("decoder.")]
    branched = sum(site.endswith(".mlp") for site in value["sites"])
    each = "each" if branched == value["n_layers"] else f"{branched} of them" if branched else "none"
    layers = f"decoder.layers.0 … decoder.layers.{value['n_layers'] - 1} ({each} with .attn and .mlp)"
    export = value["export"]
    rows = [
        ("architecture", value["architecture"]),
        ("decoder", f"{value['n_layers']} layers of width {value['d_model']}, vocabulary {value['vocabulary']}"),
        ("parameters", f"{value['parameters']:,} ({value['quantised'] or value['dtype']})"),
        *((name, part or "none") for name, part in value["parts"].items()),
        ("sites", f"{layers}, {', '.join(plain)}"),
        ("fingerprint", value["fingerprint"] or "not computed: --fingerprint reads every weight"),
        ("export", f"yes, as {export['family']}" if export["supported"] else f"no: {escape(export['reason'])}"),
    ]
    if not export["supported"] and not all(export["graphs"].values()):
        can = [name for name, reason in export["graphs"].items() if reason is None]
        rows.append(("graphs", f"{' and '.join(can)} can be exported beside others given with --base-onnx"))
    if export["supported"]:
        slow = export["attention"]
        rows.append(("attention", f"many nodes a layer: {slow}" if slow else "one node a layer (GroupQueryAttention)"))
    if value["model_organism"]:
        rows.append(("note", "a model organism: its figures say nothing about large models"))
    facts(console, escape(value["path"]), rows)
