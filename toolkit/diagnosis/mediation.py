"""Causal mediation (Pearl 2001; Vig et al. 2020, arXiv:2004.12265): which sites carry the effect of a request's harm.

x is the request of a pair (0 malicious, 1 benign), z a mediator, m the refusal margin at the first answer token
(:mod:`safetykit.toolkit.evaluation.refusal`). m(x, z(x')) is the margin of a run on x with z taken from the run on x'.

    TE  = m(1, z(1)) − m(0, z(0))     the benign run against the malicious one
    NIE = m(0, z(1)) − m(0, z(0))     only the mediator hears the benign request
    NDE = m(1, z(0)) − m(0, z(0))     everything but the mediator does

A negative NIE: with the benign mediator the model is less inclined to refuse, so the site carries what makes it
refuse; a positive one: the site carries what keeps it from refusing. Both are reported.

Identities: a mediator that screens off everything, such as a block's output at all of equally many positions, has
NIE = TE and NDE = 0 in every layer. That is why *where* a layer acts shows at ``mlp`` and ``attn`` (the layer's own
additions) and at ``block`` only by kind of position. In general TE ≠ NIE + NDE: the two interact.

Source: methods of the cited papers; applying them to CARE's diagnosis (arXiv:2603.27240), which blocks layers
instead, is ours (see :mod:`.blocking` for theirs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ...adapters.artifact.sites import Site
from ..evaluation.refusal import RefusalTokens
from .pairs import PairBatch
from .patching import swapped
from .resuming import Resumed
from .terms import KINDS, Modality, Positions

if TYPE_CHECKING:
    from ..model.vlm import VLM


@dataclass(frozen=True)
class Effects:
    """Effects on some pairs of one modality, in nats.

    Attributes:
        positions: what axis 0 of ``nie`` and ``nde`` counts; axis 1 counts :data:`KINDS`.
        malicious, benign: margins of the unpatched runs.
    """

    modality: Modality
    positions: tuple[Positions, ...]
    malicious: Float[np.ndarray, " pairs"]
    benign: Float[np.ndarray, " pairs"]
    nie: Float[np.ndarray, "positions kinds layers pairs"]
    nde: Float[np.ndarray, "positions kinds layers pairs"]

    @property
    def total(self) -> Float[np.ndarray, " pairs"]:
        """TE of each pair."""
        return self.benign - self.malicious

    @classmethod
    def join(cls, parts: Sequence[Effects]) -> Effects:
        """The effects on all pairs of ``parts``, in their order."""
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in ("malicious", "benign", "nie", "nde")
        }
        return cls(parts[0].modality, parts[0].positions, **joined)


def mediate(
    vlm: VLM,
    batch: PairBatch,
    refusal: RefusalTokens,
    positions: tuple[Positions, ...],
    tick: Callable[[], None] = lambda: None,
) -> Effects:
    """Effects of every site on a batch: one forward pass, from its layer on, per site and kind of position.

    The pass runs both halves with their activations exchanged, so it gives NIE and NDE together.

    Args:
        tick: called after each forward pass.
    """
    size, depth = len(batch.pairs), len(vlm.parts.layers)
    passes = Resumed(vlm, batch, refusal)
    plain = passes.plain.numpy()
    tick()
    shape = (len(positions), len(KINDS), depth, size)
    nie, nde = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for layer in range(depth):
        for at, where in enumerate(positions):
            for column, kind in enumerate(KINDS):
                with swapped(vlm, batch, Site(kind, layer), where):
                    found = passes.margins(layer).numpy()
                nie[at, column, layer] = found[:size] - plain[:size]
                nde[at, column, layer] = found[size:] - plain[:size]
                tick()
    return Effects(batch.pairs[0].modality, positions, plain[:size], plain[size:], nie, nde)
