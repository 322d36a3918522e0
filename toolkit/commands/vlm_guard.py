"""`safetykit fit vlm-guard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AdapterOut, Data, FalsePositives, Json, Layers, Model, Overwrite, PhaseName, ScopeName, Sweep


def fit(
    model: Model,
    data: Data,
    out: AdapterOut,
    variant: Annotated[str | None, typer.Option(help="orthogonal, steer, supervised or target.")] = None,
    direction: Annotated[str | None, typer.Option(help="svd or mean: where the safety direction comes from.")] = None,
    gate: Annotated[str | None, typer.Option(help="paper, calibrated or whitened.")] = None,
    layers: Layers = None,
    rank: Annotated[int | None, typer.Option(help="m, the dimension of the subspace.")] = None,
    alpha: Annotated[float | None, typer.Option(help="α, the strength.")] = None,
    false_positive_rate: FalsePositives = None,
    scope: ScopeName = None,
    phase: PhaseName = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the prompt's decision while answering.")] = False,
    text_model: Annotated[str | None, typer.Option(help="Separate aligned model to take the direction from.")] = None,
    sweep: Sweep = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """VLM-Guard: the safety direction of the language model, applied to the VLM."""
    from ...adapters.artifact.sites import Phase, Scope
    from ...adapters.errors import UsageError
    from ...adapters.vlm_guard.guard import Direction, Gate, Variant, VLMGuard
    from ..data.sources import model_path
    from ..model.vlm import VLM
    from ..sweep.guard import fit_by_sweep
    from .fitting import fit_and_save, parse_layers, require_choices

    given = {
        "variant": variant,
        "direction": direction,
        "gate": gate,
        "layers": parse_layers(layers),
        "rank": rank,
        "alpha": alpha,
        "false_positive_rate": false_positive_rate,
        "scope": scope,
        "phase": phase,
        "hold": hold or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    require_choices(given, {"variant": Variant, "direction": Direction, "gate": Gate, "scope": Scope, "phase": Phase})
    if sweep and text_model is not None:
        raise UsageError("--sweep takes the direction from the model itself.", "Leave out --text-model or --sweep.")
    VLMGuard(**given)  # options that exclude each other are refused before a model is loaded
    journal = Path(out).parent / f".{out.name}.sweep.jsonl"

    def make(vlm, records, progress):
        if sweep:
            return fit_by_sweep(vlm, records, given, progress=progress, journal_path=journal)
        source = VLM.from_pretrained(model_path(text_model)) if text_model else None
        return VLMGuard(**given).fit(vlm, records, text_model=source)

    fit_and_save(model, data, out, make, doing="sweeping" if sweep else "fitting", overwrite=overwrite, as_json=as_json)
