"""`safetykit fit care`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AdapterOut, Data, Json, Layers, Model, Overwrite, PhaseName, ScopeName, Sweep

_LAYERS_OF_MAP = 4


def fit(
    model: Model,
    data: Data,
    out: AdapterOut,
    variant: Annotated[str | None, typer.Option(help="official or corrected.")] = None,
    fusion: Annotated[str | None, typer.Option(help="adaptive, sequential, parallel, masked or injection.")] = None,
    layers: Layers = None,
    map_folder: Annotated[
        Path | None, typer.Option("--map", help="Channel map of safetykit diagnose: the layers of each modality.")
    ] = None,
    map_layers: Annotated[
        int | None, typer.Option(min=1, help=f"How many layers to take from the map; {_LAYERS_OF_MAP} by default.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="k, the dimension of each subspace.")] = None,
    alpha: Annotated[float | None, typer.Option(help="α, the strength; 1 removes, more reflects.")] = None,
    beta: Annotated[float | None, typer.Option(help="β of the injection.")] = None,
    floor: Annotated[float | None, typer.Option(help="Leave out directions with λ at or below this.")] = None,
    contrast: Annotated[
        str | None, typer.Option(help="label, carrier or behaviour: what makes a record malicious.")
    ] = None,
    centre: Annotated[str | None, typer.Option(help="own or benign: the mean of malicious spread.")] = None,
    shrinkage: Annotated[str | None, typer.Option(help="ledoit-wolf or oas.")] = None,
    site: Annotated[str | None, typer.Option(help="mlp, attn or block outputs.")] = None,
    modalities: Annotated[str | None, typer.Option(help="both, visual or textual.")] = None,
    selection: Annotated[str | None, typer.Option(help="kernel, or none to pool every token.")] = None,
    visual_share: Annotated[float | None, typer.Option(help="Share of image tokens that is pooled.")] = None,
    textual_share: Annotated[float | None, typer.Option(help="Share of text tokens that is pooled.")] = None,
    with_response: Annotated[
        bool | None, typer.Option("--with-response", help="Pool the tokens of records' responses too.")
    ] = None,
    scope: ScopeName = None,
    phase: PhaseName = None,
    sweep: Sweep = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """CARE: safety subspaces of both modalities, projected out of the hidden states."""
    from dataclasses import replace

    from ...adapters.artifact.sites import Phase, Scope
    from ...adapters.care.care import CARE, Fusion, Modalities, Where
    from ...adapters.care.statistics import Contrast
    from ...adapters.errors import UsageError
    from ...adapters.statistics.moments import Shrinkage
    from ...adapters.statistics.subspaces import Centre, Variant
    from ...adapters.statistics.tokens import Selection
    from ..diagnosis.channel_map import ChannelMap
    from ..sweep.care import fit_by_sweep, fit_care, usual
    from .fitting import fit_and_save, parse_layers, require_choices

    given = {
        "variant": variant,
        "fusion": fusion,
        "layers": parse_layers(layers),
        "rank": k,
        "alpha": alpha,
        "beta": beta,
        "floor": floor,
        "contrast": contrast,
        "centre": centre,
        "shrinkage": shrinkage,
        "site": site,
        "modalities": modalities,
        "selection": selection,
        "visual_share": visual_share,
        "textual_share": textual_share,
        "with_response": with_response,
        "scope": scope,
        "phase": phase,
    }
    given = {name: value for name, value in given.items() if value is not None}
    choices = {
        "variant": Variant,
        "fusion": Fusion,
        "contrast": Contrast,
        "centre": Centre,
        "shrinkage": Shrinkage,
        "site": Where,
        "modalities": Modalities,
        "selection": Selection,
        "scope": Scope,
        "phase": Phase,
    }
    require_choices(given, choices)
    if map_folder is None:
        if map_layers is not None:
            raise UsageError("--map-layers takes layers from a channel map.", "Name one with --map.")
        channels = None
    else:
        if layers is not None:
            raise UsageError("--layers and --map both name the layers.", "Leave out one of them.")
        channels = ChannelMap.load(map_folder)
        count = map_layers or _LAYERS_OF_MAP
        wanted = given.get("modalities", "both")
        visual, textual = (
            channels.layers_for(name, count) if wanted in ("both", name) else () for name in ("visual", "textual")
        )
        given |= {"layers": visual, "textual_layers": textual}
    CARE(**given)  # options that exclude each other are refused before a model is loaded
    journal = Path(out).parent / f".{out.name}.sweep.jsonl"

    def make(vlm, records, progress):
        if channels is not None:
            channels.require_base(vlm.fingerprint, model)
        if sweep:
            adapter = fit_by_sweep(vlm, records, given, progress=progress, journal_path=journal)
        else:
            adapter = fit_care(vlm, records, usual(vlm.base.n_layers, vlm.base.d_model, given))
        if channels is None:
            return adapter
        diagnosis = channels.info.model_dump(mode="json")  # card and report show why these layers
        return replace(adapter, attachments={**adapter.attachments, "diagnosis": diagnosis})

    fit_and_save(model, data, out, make, doing="sweeping" if sweep else "fitting", overwrite=overwrite, as_json=as_json)
