"""Draws of the next token with temperature and nucleus (top-p), by NumPy alone: servers of other people run it, too."""

import numpy as np


class Drawing:
    """Draws whose seed makes them repeatable.

    Args:
        temperature: divides the logits; above 0.
        top_p: draw among the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: of the random generator, 0 or more.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """A token of each row; logits are [batch, vocab]."""
        wide = logits.astype(np.float64)
        below = wide - wide.max(axis=-1, keepdims=True)  # before it is divided: the temperature may be tiny
        with np.errstate(over="ignore"):
            probabilities = np.exp(below / self._temperature)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked = np.where(before < self._top_p, ranked, 0)  # the most probable token always stays
        ranked /= ranked.sum(axis=-1, keepdims=True)
        draws = self._random.random((len(logits), 1))
        picked = np.minimum((np.cumsum(ranked, axis=-1) <= draws).sum(axis=-1), (ranked > 0).sum(axis=-1) - 1)
        return np.take_along_axis(order, picked[:, None], axis=-1)[:, 0]
