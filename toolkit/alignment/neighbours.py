"""Texts retrieved for the training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...adapters.errors import UsageError
from ..data.captions import CaptionedPicture

if TYPE_CHECKING:
    from ..index.caption_index import CaptionIndex
    from ..model.vlm import VLM


class Retriever(Protocol):
    """Finds texts for pictures."""

    def texts(self, captions: Sequence[CaptionedPicture], means: Float[Tensor, "pictures d_vision"]) -> list[str]:
        """One text per captioned picture, never one that equals its caption.

        Args:
            means: of what the projector reads of each picture.
        """
        ...


class NearestPictures:
    """The caption of the nearest other picture, by the cosine of mean tower features; exact.

    Used where no caption index is given: it needs no text embedder, since captions are found by their own pictures.
    """

    def texts(self, captions: Sequence[CaptionedPicture], means: Float[Tensor, "pictures d_vision"]) -> list[str]:
        """See :class:`Retriever`.

        Raises:
            UsageError: all captions are the same.
        """
        words = [item.caption for item in captions]
        number = {text: at for at, text in enumerate(dict.fromkeys(words))}
        if len(number) < 2:
            raise UsageError("All captions are the same.", "Retrieval needs at least two different captions.")
        mine = torch.tensor([number[text] for text in words])
        keys = F.normalize(means.float() - means.float().mean(0), dim=-1)
        found = []
        for rows in torch.arange(len(words)).split(1024):
            near = keys[rows] @ keys.T
            near[mine[rows][:, None] == mine[None]] = -torch.inf
            found += near.argmax(1).tolist()
        return [words[at] for at in found]


class FromIndex:
    """The nearest text of a caption index that is not the picture's own caption, by the query that export uses.

    Args:
        index: holds the captions of the training pictures, and whatever else may be retrieved.
    """

    def __init__(self, vlm: VLM, index: CaptionIndex) -> None:
        self._vlm, self._index = vlm, index

    def texts(self, captions: Sequence[CaptionedPicture], means: Float[Tensor, "pictures d_vision"]) -> list[str]:
        """See :class:`Retriever`.

        Raises:
            UsageError: the index lacks captions of the pictures, or holds nothing else for one.
        """
        from ..retrieval.fit import fit_retrieval, picture_states

        if len(self._index) < 2:
            raise UsageError(f"The index in {self._index.folder} holds one text.", "Retrieval needs at least two.")
        (query,) = fit_retrieval(self._vlm, self._index, captions, k=1, external=True).interventions
        states = torch.from_numpy(picture_states(self._vlm, captions))
        queries = (states @ query.tensors["query_weight"].T + query.tensors["query_bias"]).numpy()
        # An index holds a text once, so that of the two best at most one is the picture's own.
        found, _ = self._index.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 2)
        return [
            next(text for text in (self._index[at] for at in row) if text != item.caption)
            for item, row in zip(captions, found.tolist(), strict=True)
        ]
