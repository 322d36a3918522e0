"""What may be chosen about the one-pass probe; :mod:`.probe` says what the choices mean."""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue

from ..artifact.sites import Site
from ..layers import Layer
from ..protocols import Place
from ..settings import setting
from ..statistics.probe_settings import ProbeSettings


class OnePassProbe(ProbeSettings):
    """Fits the one-pass probe; see :mod:`safetykit.adapters.one_pass.probe`."""

    method: ClassVar[str] = "one-pass"

    fused_layer: Layer | None = setting(None, "Block that is read, from 0.", shown="by loss")

    def places(self, depth: int) -> list[Place]:
        if self.fused_layer is None:
            return [Site.block(layer) for layer in range(depth)]
        Site.block(self.fused_layer).require_within(depth)
        return [Site.block(self.fused_layer)]

    @property
    def kind(self) -> str:
        return "linear"

    def layers(self, chosen: Place) -> dict[str, JsonValue]:
        assert isinstance(chosen, Site)
        return {"fused_layer": chosen.layer}
