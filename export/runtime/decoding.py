"""What is known of a batch between two calls of the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Decoding:
    """A batch in the middle of decoding.

    Attributes:
        logits: float32, of the token fed last, or of all tokens fed last where that was asked for.
        past: KV cache by input name, [batch, heads, length, head_dim]; on a device it stays there, see :mod:`.binding`.
        attention_mask: over everything fed so far, 0 at padding.
        further: what else the decoder was fed last, such as positions.
        swaps: how many adapters had been swapped in when the prompt was read.
        extras: ``{k}.{name}`` → output of intervention k's op at prefill; ``risk`` → a detector's log-odds of harm;
            what was retrieved for the pictures, see :class:`Seeing`.
        scores: the outputs of ops in the last call, by the same names.
    """

    logits: Float[np.ndarray, "batch seq vocab"]
    past: dict[str, np.ndarray]
    attention_mask: Int[np.ndarray, "batch total"]
    further: dict[str, np.ndarray]
    extras: dict[str, np.ndarray]
    swaps: int = 0
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def best(self) -> Int[np.ndarray, " batch"]:
        """Each row's most probable next token."""
        best: Int[np.ndarray, " batch"] = self.logits[:, -1].argmax(axis=-1)
        return best


@dataclass(frozen=True)
class Seeing:
    """What the vision encoder made of pictures.

    Attributes:
        features: in the decoder's embedding space.
        further: features for the image tokens of other inputs of the decoder, by their names.
        extras: ``retrieved_ids`` and ``retrieved_scores`` [pictures, k], or ``retrieval_query`` [pictures, d_key].
    """

    features: Float[np.ndarray, "... d_model"]
    further: dict[str, Float[np.ndarray, "... d_model"]]
    extras: dict[str, np.ndarray]


def joined_calls(
    names: Sequence[str], calls: Sequence[Sequence[np.ndarray]], flat: Sequence[str]
) -> dict[str, np.ndarray]:
    """The outputs of several calls of a graph as one, by their names; those in ``flat`` as [rows, width]."""
    if len(calls) == 1:
        return dict(zip(names, calls[0], strict=True))
    return {
        name: np.concatenate([part.reshape(-1, part.shape[-1]) if name in flat else part for part in parts])
        for name, parts in zip(names, zip(*calls, strict=True), strict=True)
    }
