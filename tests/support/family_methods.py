"""Every method as families are tried with it."""

from __future__ import annotations

import pytest

from safetykit.adapters import Adapter
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.protocols import Refusal
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.tga.settings import TGA
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench.zoo import NAMES
from safetykit.toolkit.alignment import Aligner
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM


def correctors_and_detector(vlm: VLM, records, captions) -> list[Adapter]:
    guard = VLMGuard(variant="steer", gate="calibrated", layers=(0,), rank=2).fit(vlm, records)
    care = CARE(layers=(1,), rank=2, site="mlp", fusion="adaptive", contrast="label").fit(vlm, records)
    with vlm.applied(guard, care):
        fitted_with = [describe_corrector(guard), describe_corrector(care)]
        sasa = SASA(safety_layer=0, fused_layer=1).fit(
            SecondPass(vlm), records, Refusal("sorry", 9), corrected_by=fitted_with
        )
    return [guard, care, sasa]


def aligned(variant: str):
    def fit(vlm: VLM, records, captions) -> list[Adapter]:
        settings = {} if variant == "closed-form" else {"steps": 2, "batch_size": 4}
        made = TGA(variant=variant, **settings).fit(Aligner(vlm, captions))
        with vlm.applied(made):
            fitted_with = [describe_corrector(made)]
            probe = OnePassProbe(fused_layer=1)
            return [made, probe.fit(SecondPass(vlm), records, Refusal("sorry", 9), corrected_by=fitted_with)]

    return fit


METHODS = {
    "VLM-Guard, CARE and SASA": correctors_and_detector,
    "TGA by LoRA and a one-pass probe": aligned("lora"),
    "TGA in closed form and a one-pass probe": aligned("closed-form"),
}


def turns() -> list[object]:
    """Every family with all methods; in CI every fourth has one of the three, in turn."""
    rest = pytest.mark.exhaustive
    return [
        pytest.param(name, methods, marks=() if at % 4 == 0 and at // 4 % len(METHODS) == turn else rest)
        for at, name in enumerate(NAMES)
        for turn, methods in enumerate(METHODS)
    ]
