"""Retrieval before the prompt: from what the graph gives for a picture to the texts that stand before its prompt.

The pictures are encoded first; ids or queries become texts; the requests then carry them, and ``InputProcessor``
writes the prefix ``Retrieved Text: …`` (TGA) before the prompt. One code for PyTorch and ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...adapters.artifact.manifest import RetrievalInfo
from ...adapters.errors import UsageError
from .requests import Request

if TYPE_CHECKING:
    from ...adapters.artifact.adapter import Adapter
    from ..index.caption_index import CaptionIndex


class Retriever:
    """Texts by what an op gave for pictures.

    Attributes:
        info: how many texts, and whether they become a prefix.
    """

    def __init__(self, info: RetrievalInfo, texts: Sequence[str] = (), index: CaptionIndex | None = None) -> None:
        """Use the texts of an adapter or export, or, for an external one, an index.

        Raises:
            UsageError: the index is missing, is not the one the query was fitted on, or is not asked for.
        """
        if not info.external and index is not None:
            raise UsageError("This model searches its own index.", "Leave out --external-index.")
        if info.external:
            if index is None:
                if info.prefix:
                    raise UsageError(
                        f"Retrieval needs its index of {info.count} texts.", "Pass its folder with --external-index."
                    )
            elif (found := index.digest) != info.index:
                raise UsageError(
                    f"The index in {index.folder} ({found[:12]}) is not the one the query was fitted on "
                    f"({info.index[:12]}).",
                    "Pass that index, or fit the retrieval on this one.",
                )
        self.info = info
        self._texts: Sequence[str] = texts if index is None else index
        self._index = index
        self._search = None if index is None else index.searcher()

    def ids(self, extras: Mapping[str, np.ndarray]) -> np.ndarray:
        """Ids [pictures, k] from the outputs of the op.

        Raises:
            UsageError: only the query is there, and no index.
        """
        if not self.info.external:
            return extras["retrieved_ids"]
        if self._search is None:
            raise UsageError("The graph gives a query only.", "Pass the index with --external-index.")
        return self._search.search(extras["retrieval_query"], self.info.k)[0]

    def texts(self, extras: Mapping[str, np.ndarray]) -> list[tuple[str, ...]]:
        """The retrieved texts of each picture, best first."""
        return [tuple(self._texts[at] for at in row) for row in self.ids(extras).tolist()]

    def pending(self, requests: Sequence[Request]) -> list[int]:
        """Rows whose pictures still have to be looked at for a prefix."""
        if not self.info.prefix:
            return []
        if any(len(request.pictures) > 1 for request in requests):
            raise UsageError("Texts are retrieved for one picture a prompt.", "Ask about one picture at a time.")
        return [at for at, request in enumerate(requests) if request.pictures and request.retrieved is None]

    def extended(
        self, requests: Sequence[Request], rows: Sequence[int], extras: Mapping[str, np.ndarray]
    ) -> list[Request]:
        """The requests with texts for ``rows``, to whose pictures ``extras`` belong in order.

        Raises:
            UsageError: a picture was cut into tiles.
        """
        found, texts = list(requests), self.texts(extras)
        if len(texts) != len(rows):
            raise UsageError(
                f"{len(rows)} pictures became {len(texts)} rows of features.",
                "The model cuts large pictures into tiles; make them smaller, or leave retrieval out.",
            )
        for at, own in zip(rows, texts, strict=True):
            found[at] = dataclasses.replace(found[at], retrieved=own)
        return found


def retriever_of(adapters: Sequence[Adapter], index: CaptionIndex | None = None) -> Retriever | None:
    """How the stacked adapters retrieve, if one of them does.

    Raises:
        UsageError: two do, or the index is missing or not the right one.
    """
    from ...adapters.retrieval.retrieval import retrieval_of

    found = retrieval_of(adapters)
    if found is None:
        return None
    info, texts = found
    return Retriever(info, texts, index if info.external else None)
