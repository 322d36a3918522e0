"""What turns texts into the vectors of an index, and how an index names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float

from ...adapters.artifact.manifest import Sha256, Strict


class EmbedderInfo(Strict):
    """Which embedder made the keys.

    Attributes:
        kind: ``vlm``: mean decoder state of a model; ``clip`` or ``sentence-transformers``: a text encoder's folder;
            ``precomputed``: handed over as they are.
        name: of the folder, for readers.
        sha256: fingerprint of the model, or digest of the folder's files; None for precomputed keys.
        site: of a ``vlm``, where its states are read.
        pooling: of an encoder: ``mean``, ``cls`` or ``projection`` (CLIP's own).
        ran: of a ``vlm``, the type it computed in; another type gives the same keys but for rounding.
    """

    kind: Literal["vlm", "clip", "sentence-transformers", "precomputed"]
    name: str
    sha256: Sha256 | None = None
    site: str | None = None
    pooling: str | None = None
    ran: str | None = None


class Embedder(Protocol):
    """Turns texts into vectors.

    Attributes:
        info: which one it is.
        dimension: width of the vectors.
        centred: keys are directions from the texts' mean: hidden states share a large common part.
    """

    info: EmbedderInfo
    dimension: int
    centred: bool

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "batch dimension"]:
        """Vectors of any length; the index normalises them."""
        ...
