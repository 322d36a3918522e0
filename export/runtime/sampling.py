"""Choosing the next token."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ...adapters.errors import UsageError


class Sampler:
    """Greedy choice, or draws with temperature and nucleus (top-p) that a seed makes repeatable.

    Args:
        do_sample: draw; otherwise the most probable token is taken.
        temperature: divides the logits; above 0.
        top_p: draw among the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: of the random generator.

    Raises:
        UsageError: temperature or top_p out of range.
    """

    def __init__(self, *, do_sample: bool = False, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> None:
        if temperature <= 0 or not 0 < top_p <= 1:
            raise UsageError(
                f"Temperature {temperature} or top-p {top_p} is out of range.",
                "Temperature is above 0 and top-p in (0, 1]; leave out sampling for the greedy answer.",
            )
        self.do_sample, self.temperature, self.top_p = do_sample, temperature, top_p
        self._random = np.random.default_rng(seed)

    def choose(self, logits: Float[np.ndarray, "batch vocab"]) -> Int[np.ndarray, " batch"]:
        """The next token of each row."""
        if not self.do_sample:
            return logits.argmax(axis=-1)
        scaled = logits.astype(np.float64) / self.temperature
        probabilities = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked = np.where(before < self.top_p, ranked, 0)  # the most probable token always stays
        ranked /= ranked.sum(axis=-1, keepdims=True)
        draws = self._random.random((len(logits), 1))
        picked = np.minimum((np.cumsum(ranked, axis=-1) <= draws).sum(axis=-1), (ranked > 0).sum(axis=-1) - 1)
        return np.take_along_axis(order, picked[:, None], axis=-1)[:, 0]
