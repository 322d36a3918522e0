"""What fitting retrieval asks of a model and an index: states of pictures, keys of their captions, states of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.manifest import BaseInfo, DataInfo
from ...adapters.artifact.sites import Site
from ...adapters.artifact.store import require_base, require_weights
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import picture_query
from ...adapters.retrieval.settings import Retrieval
from ..data.captions import CaptionedPicture, describe_captions
from ..index.caption_index import CaptionIndex
from ..model.batching import streamed
from ..model.capture import USUAL
from ..model.requests import Request
from ..progress import Progress
from .embedders import token_ids

if TYPE_CHECKING:
    from ..index.embedding import Embedder
    from ..model.vlm import VLM

_PROJECTOR = Site("projector")


class Pictures:
    """A VLM's view of captioned pictures, and the index their captions are looked up in.

    Args:
        embedder: of the index; needed for pictures whose captions the index does not hold.
        progress: told the pictures seen.
    """

    def __init__(
        self,
        vlm: VLM,
        index: CaptionIndex,
        pictures: Sequence[CaptionedPicture],
        embedder: Embedder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.vlm, self.index, self._pictures = vlm, index, pictures
        self._embedder, self._progress = embedder, progress

    @property
    def base(self) -> BaseInfo:
        return self.vlm.base

    @property
    def data(self) -> DataInfo:
        """Hash and counts of the captions."""
        return describe_captions(self._pictures)

    @property
    def embedder(self) -> dict[str, JsonValue]:
        """What the index's keys were made with."""
        return self.index.manifest.embedder.model_dump(mode="json")

    @property
    def captions(self) -> list[str]:
        """The caption of each picture."""
        return [item.caption for item in self._pictures]

    def keys(self) -> Float[np.ndarray, "pictures d_key"]:
        """The key of each picture's caption.

        Raises:
            UsageError: captions lack a key and there is no embedder, or they are fewer than two.
        """
        return _keys(self.index, self._pictures, self._embedder)

    def states(self) -> Float[np.ndarray, "pictures d_model"]:
        """See :func:`picture_states`."""
        return picture_states(self.vlm, self._pictures, self._progress)

    def values(self) -> Float[Tensor, "texts d_model"]:
        """See :func:`text_values`."""
        return text_values(self.vlm, self.index)


def fit_retrieval(
    vlm: VLM,
    index: CaptionIndex,
    pictures: Sequence[CaptionedPicture],
    *,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Adapter:
    """``Retrieval(**settings)`` fitted on captioned pictures; see :class:`Pictures` for the other arguments.

    Raises:
        UsageError: too many or too few texts, settings that exclude each other, or captions without a key.
    """
    return Retrieval(**settings).fit(Pictures(vlm, index, pictures, embedder, progress))


def picture_states(
    vlm: VLM, pictures: Sequence[CaptionedPicture], progress: Progress | None = None
) -> Float[np.ndarray, "pictures d_model"]:
    """Mean image state of each picture at the projector, with the adapters that are applied."""
    found: list[np.ndarray] = []

    def run(some: Sequence[CaptionedPicture]) -> Float[np.ndarray, "some d_model"]:
        return torch.stack([one.mean(0) for one in image_states(vlm, [item.picture() for item in some])]).numpy()

    for _, states in streamed(pictures, vlm.batch_size, USUAL, run):
        found.append(states)
        if progress:
            progress(sum(map(len, found)), len(pictures))
    return np.concatenate(found)


@torch.inference_mode()
def image_states(vlm: VLM, pictures: Sequence[Image.Image]) -> list[Float[Tensor, "tokens d_model"]]:
    """Image tokens of each picture at the projector, in float32.

    Raises:
        UsageError: pictures are not rows of the projector's output, so that no op there can tell them apart.
    """
    site, seen = vlm.parts.module(_PROJECTOR), []
    handle = site.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        vlm.see(vlm.inputs.prepare([Request(".", picture) for picture in pictures]))
    finally:
        handle.remove()
    if vlm.parts.family.repacks or len(seen) != 1 or seen[0].ndim != 3 or len(seen[0]) != len(pictures):
        raise UsageError(
            f"{type(vlm.model).__name__} cuts pictures into tiles or joins their tokens, so that its projector does "
            "not give one row a picture.",
            "Texts are retrieved in models such as LLaVA-1.5, Gemma 3 and PaliGemma only.",
        )
    return list(seen[0].float().cpu())


@torch.inference_mode()
def text_values(vlm: VLM, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "texts d_model"]:
    """Mean token embedding of each text: where the decoder reads it, which is also where it reads image tokens."""
    values = torch.empty(len(texts), vlm.base.d_model)
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        ids, mask = token_ids(vlm.inputs.tokenizer, batch)
        states = vlm.parts.embed_tokens(ids.to(vlm.device)).float().cpu() * mask[..., None]
        values[start : start + len(batch)] = states.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
    return values


def _keys(
    index: CaptionIndex, pictures: Sequence[CaptionedPicture], embedder: Embedder | None
) -> Float[np.ndarray, "pictures d_key"]:
    captions = sorted({item.caption for item in pictures})
    if len(captions) < 2:
        raise UsageError("The pictures have fewer than two captions between them.", "Give more captioned pictures.")
    ids = index.ids_of(captions)
    missing = [caption for caption in captions if caption not in ids]
    if missing and embedder is None:
        raise UsageError(
            f"{len(missing)} of {len(captions)} captions are not in the index; the first is {missing[0]!r}.",
            "Index the pictures' captions too, or pass the index's encoder with --encoder.",
        )
    known = {caption: np.asarray(index.keys[at], dtype=np.float32) for caption, at in ids.items()}
    if missing:
        assert embedder is not None
        known |= dict(zip(missing, index.embed(embedder, missing), strict=True))
    return np.stack([known[item.caption] for item in pictures])


@torch.inference_mode()
def picture_query_of(vlm: VLM, adapter: Adapter, picture: Image.Image) -> Float[np.ndarray, "1 d_key"]:
    """The query that a retrieval adapter makes of a picture.

    Raises:
        WrongBase: the adapter was fitted on another model.
    """
    require_base(adapter, vlm.fingerprint, str(vlm.path), choice=False)
    require_weights(adapter, vlm.on, str(vlm.path))
    tensors = next(item.tensors for item in adapter.interventions if "query_weight" in item.tensors)
    (states,) = image_states(vlm, [picture])
    query = picture_query(states[None], torch.ones(1, len(states), 1), tensors["query_weight"], tensors["query_bias"])
    return query.numpy()
