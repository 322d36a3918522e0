"""Choosing the next token."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ...toolkit.model.generating import Sampling
from .drawing import Drawing


class Sampler:
    """Greedy choice, or draws with temperature and nucleus (top-p)."""

    def __init__(self, sampling: Sampling) -> None:
        self._drawing = Drawing(sampling.temperature, sampling.top_p, sampling.seed) if sampling.do_sample else None

    def choose(self, logits: Float[np.ndarray, "batch vocab"]) -> Int[np.ndarray, " batch"]:
        """The next token of each row."""
        chosen: np.ndarray = logits.argmax(axis=-1) if self._drawing is None else self._drawing(logits)
        return chosen
