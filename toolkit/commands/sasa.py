"""`safetykit fit sasa`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    AdapterOut,
    ChannelMapFolder,
    Data,
    FalsePositives,
    Fraction,
    Json,
    Model,
    Overwrite,
    RefusalText,
    Seed,
    Space,
    With,
)


def fit(
    model: Model,
    data: Data,
    out: AdapterOut,
    variant: Annotated[str | None, typer.Option(help="published, or unprojected as an ablation.")] = None,
    safety_layer: Annotated[int | None, typer.Option(help="s, from 0; chosen by a sweep if left out.")] = None,
    fused_layer: Annotated[int | None, typer.Option(help="f, from 0; chosen by a sweep if left out.")] = None,
    map_folder: ChannelMapFolder = None,
    false_positive_rate: FalsePositives = None,
    space: Space = None,
    refusal: RefusalText = None,
    fraction: Fraction = None,
    seed: Seed = None,
    corrected_by: With = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """SASA: a probe before generation, on late semantics projected onto an early layer."""
    from ...adapters.sasa.sasa import SASA
    from .sasa_fit import fit_detector, map_for_layers

    given = {
        "variant": variant,
        "safety_layer": safety_layer,
        "fused_layer": fused_layer,
        "false_positive_rate": false_positive_rate,
        "space": space,
        "fraction": fraction,
        "seed": seed,
    }
    channels = map_for_layers(map_folder, given) if map_folder else None
    fit_detector(
        SASA,
        given,
        model,
        data,
        out,
        channels=channels,
        refusal=refusal,
        corrected_by=corrected_by,
        overwrite=overwrite,
        as_json=as_json,
    )
