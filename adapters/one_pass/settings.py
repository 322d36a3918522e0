"""What may be chosen about the one-pass probe; :mod:`.probe` says what the choices mean."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import JsonValue, model_validator

from ..artifact.sites import Site
from ..errors import UsageError
from ..layers import Layer, Layers
from ..protocols import Blocks, Place
from ..settings import setting, spell
from ..statistics.probe_settings import ProbeSettings


class OnePassProbe(ProbeSettings):
    """Fits the one-pass probe; see :mod:`safetykit.adapters.one_pass.probe`."""

    method: ClassVar[str] = "one-pass"

    fused_layer: Layer | None = setting(None, "Block that is read, from 0.", shown="by loss")

    layers: Layers | None = setting(
        None,
        "Blocks that are read beside each other, such as 2,4,6.",
        shown="one, by loss",
    )

    @model_validator(mode="after")
    def _one_reading(self) -> Self:
        if self.layers is not None and self.fused_layer is not None:
            raise UsageError(
                f"{spell(type(self), 'layers')} and {spell(type(self), 'fused_layer')} both say what is read.",
                "Give one of them.",
            )
        if self.space == "logits" and self.layers is not None and len(set(self.layers)) > 1:
            raise UsageError(
                f"{spell(type(self), 'space')} logits is the metric of one layer's states, and several are read.",
                f"Leave it out, or give one layer with {spell(type(self), 'fused_layer')}.",
            )
        return self

    def places(self, depth: int) -> list[Place]:
        if self.layers is not None:
            sites = [Site.block(layer) for layer in sorted(set(self.layers))]
            for site in sites:
                site.require_within(depth)
            return list(sites) if len(sites) == 1 else [Blocks(tuple(sorted(set(self.layers))))]
        if self.fused_layer is None:
            return [Site.block(layer) for layer in range(depth)]
        Site.block(self.fused_layer).require_within(depth)
        return [Site.block(self.fused_layer)]

    @property
    def kind(self) -> str:
        return "linear"

    def chosen(self, place: Place) -> dict[str, JsonValue]:
        if isinstance(place, Blocks):
            return {"layers": list(place.layers)}
        assert isinstance(place, Site)
        return {"fused_layer": place.layer}
