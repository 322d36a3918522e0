"""What may be chosen about SASA; :mod:`.sasa` says what the choices mean."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import JsonValue, model_validator

from ..artifact.sites import Site
from ..errors import UsageError
from ..layers import Layer
from ..protocols import Place
from ..settings import setting, spell
from ..statistics.probe_settings import ProbeSettings

Variant = Literal["published", "unprojected"]


class SASA(ProbeSettings):
    """Fits SASA; see :mod:`safetykit.adapters.sasa.sasa` for the mathematics."""

    method: ClassVar[str] = "sasa"

    variant: Variant = setting("published", "published, or unprojected as an ablation.")
    safety_layer: Layer | None = setting(
        None, "s, the layer whose state is replaced, from 0.", acts={"variant": "published"}, shown="by loss"
    )
    fused_layer: Layer | None = setting(
        None, "f, the layer whose state takes its place, from 0.", acts={"variant": "published"}, shown="by loss"
    )

    @model_validator(mode="after")
    def _safety_before_fusion(self) -> Self:
        safety, fused = self.safety_layer, self.fused_layer
        if safety is not None and fused is not None and safety > fused:
            raise UsageError(
                f"The safety layer {safety} lies after the fused layer {fused}.",
                "Meaning emerges later than safety is perceived: give a safety layer that is not after the fused one.",
            )
        return self

    def places(self, depth: int) -> list[Place]:
        safety, fused = self.safety_layer, self.fused_layer
        for layer in (safety, fused):
            if layer is not None:
                Site.block(layer).require_within(depth)
        if self.variant == "unprojected":
            return [Site("final_norm")]
        if safety is not None and fused is not None:
            return [(safety, fused)]
        pairs: list[Place] = [
            (s, f)
            for s in (range(depth) if safety is None else [safety])
            for f in (range(depth) if fused is None else [fused])
            if s < f
        ]
        if not pairs:
            raise UsageError(
                f"With {safety if safety is not None else fused} as the given layer, no other is left for the "
                "projection.",
                f"Give both {spell(SASA, 'safety_layer')} and {spell(SASA, 'fused_layer')}, or another one.",
            )
        return pairs

    @property
    def kind(self) -> str:
        return self.variant

    def chosen(self, place: Place) -> dict[str, JsonValue]:
        return {"safety_layer": place[0], "fused_layer": place[1]} if isinstance(place, tuple) else {}
