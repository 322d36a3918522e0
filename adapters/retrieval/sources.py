"""What retrieval is fitted on: captioned pictures as a model sees them, and an index of texts. Types only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

    from ..artifact.manifest import BaseInfo, DataInfo


class Index(Protocol):
    """Texts with keys (``toolkit.index.caption_index.CaptionIndex``)."""

    keys: Float[np.ndarray, "count dimension"]

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, at: int) -> str: ...
    def ids_of(self, texts: set[str]) -> Mapping[str, int]: ...
    def search(
        self, queries: Float[np.ndarray, "batch dimension"], k: int
    ) -> tuple[Int[np.ndarray, "batch k"], Float[np.ndarray, "batch k"]]: ...


class PictureSource(Protocol):
    """A model's view of captioned pictures (``toolkit.retrieval.fit.Pictures``)."""

    @property
    def base(self) -> BaseInfo: ...
    @property
    def data(self) -> DataInfo: ...
    @property
    def index(self) -> Index: ...
    @property
    def embedder(self) -> dict[str, JsonValue]:
        """What the index's keys were made with."""
        ...

    @property
    def captions(self) -> list[str]:
        """The caption of each picture."""
        ...

    def keys(self) -> Float[np.ndarray, "pictures d_key"]:
        """The key of each picture's caption."""
        ...

    def states(self) -> Float[np.ndarray, "pictures d_model"]:
        """Mean state of each picture's tokens at the projector."""
        ...

    def values(self) -> Float[Tensor, "texts d_model"]:
        """Mean state of each text of the index, where the decoder reads pictures."""
        ...
