"""Choosing the next token."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ...toolkit.model.generating import Sampling


class Sampler:
    """Greedy choice, or draws with temperature and nucleus (top-p)."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Float[np.ndarray, "batch vocab"]) -> Int[np.ndarray, " batch"]:
        """The next token of each row."""
        if not self._sampling.do_sample:
            return logits.argmax(axis=-1)
        wide = logits.astype(np.float64)
        below = wide - wide.max(axis=-1, keepdims=True)  # before it is divided: the temperature may be tiny
        with np.errstate(over="ignore"):
            probabilities = np.exp(below / self._sampling.temperature)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked = np.where(before < self._sampling.top_p, ranked, 0)  # the most probable token always stays
        ranked /= ranked.sum(axis=-1, keepdims=True)
        draws = self._random.random((len(logits), 1))
        picked = np.minimum((np.cumsum(ranked, axis=-1) <= draws).sum(axis=-1), (ranked > 0).sum(axis=-1) - 1)
        return np.take_along_axis(order, picked[:, None], axis=-1)[:, 0]
