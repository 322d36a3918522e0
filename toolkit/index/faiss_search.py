"""Exact search by FAISS (``IndexFlatIP``), for indexes too large for a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from ...adapters.extras import missing
from .ranking import level, ordered

_SPARE = 8


class Searched(Protocol):
    """An index whose keys can be read block by block (``CaptionIndex``)."""

    @property
    def keys(self) -> Float[np.ndarray, "n dimension"]: ...

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "rows dimension"]]]:
        """The first row of each block, and its keys."""
        ...

    def checked(self, queries: Float[np.ndarray, "batch dimension"], k: int) -> Float[np.ndarray, "batch dimension"]:
        """Queries that fit the index."""
        ...


class FaissSearch:
    """Searches as :meth:`CaptionIndex.search` does, with the same ids."""

    def __init__(self, index: Searched) -> None:
        try:
            import faiss
        except ImportError:
            raise missing("faiss", "This search") from None
        self._index = index
        self._flat = faiss.IndexFlatIP(index.keys.shape[1])
        for _, keys in index.blocks():
            self._flat.add(np.ascontiguousarray(keys))

    def search(
        self, queries: Float[np.ndarray, "batch dimension"], k: int
    ) -> tuple[Int[np.ndarray, "batch k"], Float[np.ndarray, "batch k"]]:
        """Ids and scores of the k best texts; see :meth:`CaptionIndex.search`."""
        queries = np.ascontiguousarray(self._index.checked(queries, k))
        fetch = min(k + _SPARE, len(self._index))
        while True:
            # FAISS leaves open which of equal scores it returns: fetch until the next lower score is in sight.
            scores, ids = self._flat.search(queries, fetch)
            levels = level(scores)
            if fetch == len(self._index) or (levels[:, -1] < levels[:, k - 1]).all():
                return ordered(ids, scores, k)
            fetch = min(2 * fetch, len(self._index))
