"""Texts with planted embeddings, and indexes made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from safetykit.toolkit.index.caption_index import CaptionIndex
from safetykit.toolkit.index.embedding import EmbedderInfo
from safetykit.toolkit.retrieval.build import build_index


class PlantedEmbedder:
    """Each text's vector is drawn from a seed of its own; texts after a ``|`` share the vector of what follows it.

    ``calls`` counts the texts embedded; after ``fail_after`` of them it breaks, as a killed process would.
    """

    def __init__(self, dimension: int = 24, *, centred: bool = False, fail_after: int | None = None) -> None:
        self.info = EmbedderInfo(kind="precomputed", name="planted")
        self.dimension, self.centred = dimension, centred
        self.calls, self.fail_after = 0, fail_after

    def vector(self, text: str) -> np.ndarray:
        seed = int(hashlib.sha256(text.rpartition("|")[2].encode()).hexdigest()[:8], 16)
        return np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)

    def embed(self, texts) -> np.ndarray:
        self.calls += len(texts)
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return np.stack([self.vector(text) for text in texts])


def planted_index(folder: Path, texts: list[str], embedder: PlantedEmbedder | None = None, **options) -> CaptionIndex:
    return build_index(lambda: iter(texts), embedder or PlantedEmbedder(), folder, **options)
