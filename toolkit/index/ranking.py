"""Which scores are the best, so that equal ones go to the lower id whoever computes them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Found = tuple[Int[np.ndarray, "batch k"], Float[np.ndarray, "batch k"]]


def level(scores: Float[np.ndarray, "batch n"]) -> Int[np.ndarray, "batch n"]:
    """Scores as integers; nearer than 2⁻³⁰ is equal, as for ``RetrieveTopK`` in a graph."""
    return np.rint(scores * np.float32(2**30)).astype(np.int64)


def best(scores: Float[np.ndarray, "batch n"], k: int) -> Found:
    """Columns and scores of the k best of each row, best first."""
    # what is not below the k-th score's level: k columns, and those tied with the last of them
    least = level(np.partition(scores, -k, axis=1)[:, [-k]]) - 1
    ids = np.empty((len(scores), k), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least / 2**30, strict=True)):
        near = np.flatnonzero(values >= bound)
        ids[row] = near[np.lexsort((near, -level(values[near])))[:k]]
    return ids, np.take_along_axis(scores, ids, axis=1)


def ordered(ids: Int[np.ndarray, "batch n"], scores: Float[np.ndarray, "batch n"], k: int) -> Found:
    """The k best of found ids, whatever their order."""
    order = np.lexsort((ids, -level(scores)), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def merge(first: Found | None, second: Found, k: int) -> Found:
    """The k best of two results."""
    if first is None:
        return second
    ids, scores = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    return ordered(ids, scores, k)
