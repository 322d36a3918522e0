"""Where refusal rises: hidden states read through the LM head, layer by layer (TGA, arXiv:2410.12662).

    D^l = log P^l(refusal) − log P^{l−1}(refusal),   P^l = softmax(head(norm(h^l_last)))

with h^{−1} the decoder's input [paper]. The first layers carry every state from the embeddings to where words are
predicted, and refusal rises with all other openings, whatever was asked. So what counts is the *contrast*: mean D^l on
harmful minus mean D^l on harmless requests of the same wording [ours].

The layers to align are the shortest contiguous range that holds at least 80 % of the rise in text, where rise is the
sum of the contrast's positive values; of equally short ranges the one that holds most [ours: the paper reads its range
off a plot].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ...adapters.artifact.sites import Site
from ..evaluation.refusal import RefusalTokens
from .states import LayerStates

if TYPE_CHECKING:
    from ..model.vlm import VLM

SHARE = 0.8
_CHUNK = 64


@torch.inference_mode()
def rises(vlm: VLM, states: LayerStates, refusal: RefusalTokens) -> Float[np.ndarray, "records layers"]:
    """D^l of each record, in nats."""
    rows = [np.empty((0, len(vlm.parts.layers)), np.float32)]
    weight, norm = vlm.parts.head.weight, vlm.parts.module(Site("final_norm"))
    for start in range(0, len(states.records), _CHUNK):
        hidden = torch.from_numpy(states.last[start : start + _CHUNK]).to(weight.device, weight.dtype)
        found = [refusal.log_probability(vlm.parts.head(norm(layer))) for layer in hidden.unbind(1)]
        rows.append(torch.stack(found, 1).diff(dim=1).float().cpu().numpy())
    return np.concatenate(rows)


def layers_of_rise(contrast: Sequence[float], share: float = SHARE) -> tuple[int, ...]:
    """The shortest contiguous range with at least ``share`` of the positive rise; empty if nothing rises."""
    rise = np.clip(np.asarray(contrast, dtype=np.float64), 0, None)
    before = np.concatenate([[0.0], np.cumsum(rise)])
    if before[-1] == 0:
        return ()
    ranges = [
        (stop - start, -(before[stop] - before[start]), start)
        for start in range(len(rise))
        for stop in range(start + 1, len(rise) + 1)
        if before[stop] - before[start] >= share * before[-1] * (1 - 1e-12)
    ]
    length, _, start = min(ranges)
    return tuple(range(start, start + length))
