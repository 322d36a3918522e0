"""Requests, prepared batches and answers: what goes into a model and what comes out, without torch or a processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image


@dataclass(frozen=True)
class Request:
    """What one user sends.

    Attributes:
        image: the picture, or several; they stand before the prompt.
        answer: how the model's answer begins, for states of a given answer; normally empty.
        retrieved: texts that stand before the prompt, as retrieved for the picture; None before retrieval.
        system: what the operator says first; empty leaves the turn to the chat template.
    """

    prompt: str
    image: Image.Image | tuple[Image.Image, ...] | None = None
    answer: str = ""
    retrieved: tuple[str, ...] | None = None
    system: str = ""

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The pictures; none, one or several."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)


@dataclass(frozen=True)
class Generation:
    """What the model returned for one request.

    Attributes:
        text: decoded, without special tokens.
        token_ids: generated tokens, end-of-sequence excluded.
        scores: per-request outputs of the adapters' ops at prefill, such as gate margins; a detector's ``risk`` is
            its log-odds of harm less its threshold.
        refused: whether the detector refused before anything was generated; the text is then its fixed answer.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: dict[str, float] = field(default_factory=dict)
    refused: bool = False


@dataclass(frozen=True)
class Inputs:
    """A batch ready for the model; rows are padded on the left.

    Attributes:
        pictures: what the processor made of the pictures, by its names; empty when no row has one.
        tokens: what else it said about each token [batch, seq], such as its type.
    """

    input_ids: Int[np.ndarray, "batch seq"]
    attention_mask: Int[np.ndarray, "batch seq"]
    vision_mask: Bool[np.ndarray, "batch seq"]
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def pixel_values(self) -> Float[np.ndarray, "..."] | None:
        """Pixels in row order, their axes as the family has them; None when no row has a picture."""
        return self.pictures.get("pixel_values")

    @property
    def position_ids(self) -> Int[np.ndarray, "batch seq"]:
        """Position of each token among the unpadded ones of its row."""
        return np.maximum(np.cumsum(self.attention_mask, axis=1) - 1, 0)
