"""A linear probe on one block of the normal pass: a cheap detector, and what SASA must beat (ours; it is not SASA).

    risk = w · h^f_last + β,   fitted, calibrated and thresholded like SASA's probe (:mod:`.probe`)

It costs one product per request and no second run of any block. The layer that is not given is chosen as SASA's are.
In space ``logits`` the penalty is that of the LM head read at block f, without the final norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from ..artifact.sites import Site
from ..sasa.sasa import ProbeFitter, layers_tried
from ..statistics.detector import Place


@dataclass(frozen=True)
class OnePassProbe(ProbeFitter):
    """Fits the one-pass probe.

    Attributes:
        fused_layer: f, from 0; None: chosen.
    """

    fused_layer: int | None = None

    def places(self, depth: int) -> list[Place]:
        if self.fused_layer is None:
            return [Site.block(layer) for layer in layers_tried(depth)]
        Site.block(self.fused_layer).require_within(depth)
        return [Site.block(self.fused_layer)]

    @property
    def _method(self) -> str:
        return "one-pass"

    @property
    def _variant(self) -> str:
        return "linear"

    def _layers(self, chosen: Place) -> dict[str, JsonValue]:
        assert isinstance(chosen, Site)
        return {"fused_layer": chosen.layer}
