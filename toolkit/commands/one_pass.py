"""`safetykit fit one-pass`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import AdapterOut, Data, FalsePositives, Fraction, Json, Model, Overwrite, RefusalText, Seed, Space, With


def fit(
    model: Model,
    data: Data,
    out: AdapterOut,
    fused_layer: Annotated[int | None, typer.Option(help="Block that is read, from 0; chosen if left out.")] = None,
    false_positive_rate: FalsePositives = None,
    space: Space = None,
    refusal: RefusalText = None,
    fraction: Fraction = None,
    seed: Seed = None,
    corrected_by: With = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """One-pass probe: a cheap detector on one block, without SASA's second pass."""
    from ...adapters.one_pass.probe import OnePassProbe
    from .sasa_fit import fit_detector

    given = {
        "fused_layer": fused_layer,
        "false_positive_rate": false_positive_rate,
        "space": space,
        "fraction": fraction,
        "seed": seed,
    }
    fit_detector(
        OnePassProbe,
        given,
        model,
        data,
        out,
        refusal=refusal,
        corrected_by=corrected_by,
        overwrite=overwrite,
        as_json=as_json,
    )
