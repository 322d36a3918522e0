"""Fitting retrieval: from captioned pictures to the query that finds their captions.

W and b are a ridge regression from the mean image state at the projector to the key of the picture's caption; its
penalty minimises the leave-one-out error. No labels are used. How often a picture finds its own caption is measured
twice, by cross-validation: with the picture left out of the fit, and with all pictures of its caption left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from ...adapters.artifact.adapter import Adapter, Intervention
from ...adapters.artifact.manifest import AdapterInfo, RetrievalInfo, library_versions
from ...adapters.artifact.sites import Site
from ...adapters.artifact.store import require_base
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import CAPTIONS, INFO, picture_query
from ..data.captions import CaptionedPicture, describe_captions
from ..evaluation.evaluate import Progress
from ..model.requests import Request
from .embedders import token_ids
from .index import CaptionIndex

if TYPE_CHECKING:
    from ..model.vlm import VLM
    from .embedding import Embedder

# Beyond, a graph answers more slowly than FAISS and its file grows by gigabytes (bench/retrieval.py).
IN_GRAPH_LIMIT = 100_000
ACCURACY = "retrieval_accuracy"
_PROJECTOR = Site("projector")
_FOLDS, _AMONG, _EVALUATED = 5, 5, 2000


@dataclass(frozen=True)
class QueryHead:
    """q = normalise(W h̄ + b).

    Attributes:
        weight: [d_key, d_model].
        bias: [d_key].
        alpha: the ridge penalty.
    """

    weight: Float[Tensor, "d_key d_model"]
    bias: Float[Tensor, " d_key"]
    alpha: float

    @classmethod
    def fit(cls, states: Float[np.ndarray, "n d_model"], keys: Float[np.ndarray, "n d_key"]) -> QueryHead:
        """Ridge regression from states to keys."""
        from sklearn.linear_model import RidgeCV

        states = states.astype(np.float64)
        scale = float(np.square(states - states.mean(0)).sum()) / states.shape[1] or 1.0
        ridge = RidgeCV(alphas=scale * np.logspace(-8, 1, 19)).fit(states, keys.astype(np.float64))
        weight, bias = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
        return cls(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), float(ridge.alpha_))


def fit_retrieval(
    vlm: VLM,
    index: CaptionIndex,
    pictures: Sequence[CaptionedPicture],
    *,
    k: int = 3,
    correction: float | None = None,
    prefix: bool = False,
    external: bool = False,
    embedder: Embedder | None = None,
    in_graph_limit: int = IN_GRAPH_LIMIT,
    progress: Progress | None = None,
) -> Adapter:
    """Fit the query on captioned pictures.

    Args:
        index: what is searched; its keys go into the adapter unless ``external``.
        k: texts per picture.
        correction: γ, the share of the way that image tokens move towards the retrieved texts; None leaves them.
        prefix: put the retrieved texts before the prompt.
        external: the graph gives the query only, and the runtime searches the index.
        embedder: of the index; needed for pictures whose captions the index does not hold.
        in_graph_limit: most texts that are put into a graph.

    Raises:
        UsageError: too many or too few texts, options that exclude each other, or captions without a key.
    """
    if external and correction is not None:
        raise UsageError("A correction needs the index in the graph.", "Leave out --correction or --external-index.")
    if correction is not None and not 0 < correction <= 1:
        raise UsageError(f"The correction {correction} is no share of the way.", "Give a number above 0, at most 1.")
    if not 1 <= k <= len(index):
        raise UsageError(f"{k} texts cannot be retrieved from {len(index)}.", f"Ask for 1 to {len(index)}.")
    if not external and len(index) > in_graph_limit:
        raise UsageError(
            f"The index holds {len(index)} texts; a graph takes {in_graph_limit}.",
            "Pass --external-index and search it beside the graph, or build a smaller index.",
        )
    keys = _keys(index, pictures, embedder)
    states = picture_states(vlm, pictures, progress)
    head = QueryHead.fit(states, keys)
    tensors = {"query_weight": head.weight, "query_bias": head.bias}
    if not external:
        # A copy: the adapter outlives the memory map.
        tensors |= {"keys": torch.from_numpy(np.array(index.keys)), "ranks": torch.arange(k)}
    if correction is not None:
        tensors |= {"values": text_values(vlm, index), "strength": torch.tensor(float(correction))}
    op = "RetrievalQuery" if external else "RetrieveTopK" if correction is None else "RetrievalCorrection"
    info = RetrievalInfo(k=k, prefix=prefix, external=external, count=len(index), index=index.digest)
    attachments: dict[str, JsonValue] = {
        INFO: info.model_dump(mode="json"),
        ACCURACY: accuracy(index, pictures, states, keys, head.alpha),
    }
    if not external:
        attachments[CAPTIONS] = list(index)
    return Adapter(
        AdapterInfo(
            method="TGA retrieval",
            variant="external" if external else "top-k" if correction is None else "correction",
            sign_convention="queries and keys have length 1; a larger score is nearer",
            hyperparameters={
                "k": k,
                "correction": correction,
                "prefix": prefix,
                "alpha": head.alpha,
                "embedder": index.manifest.embedder.model_dump(mode="json"),
            },
            seed=None,
            base=vlm.base,
            data=describe_captions(pictures),
            versions=library_versions(),
        ),
        (Intervention(op, _PROJECTOR, "all", "prefill", tensors),),
        attachments,
    )


def picture_states(
    vlm: VLM, pictures: Sequence[CaptionedPicture], progress: Progress | None = None, batch_size: int = 32
) -> Float[np.ndarray, "pictures d_model"]:
    """Mean image state of each picture at the projector, with the adapters that are applied."""
    found: list[np.ndarray] = []
    for start in range(0, len(pictures), batch_size):
        states = image_states(vlm, [item.picture() for item in pictures[start : start + batch_size]])
        found.append(torch.stack([one.mean(0) for one in states]).numpy())
        if progress:
            progress(start + len(states), len(pictures))
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


def accuracy(
    index: CaptionIndex,
    pictures: Sequence[CaptionedPicture],
    states: Float[np.ndarray, "pictures d_model"],
    keys: Float[np.ndarray, "pictures d_key"],
    alpha: float,
) -> dict[str, JsonValue]:
    """How often a left-out picture finds its own caption.

    Returns:
        The attachment ``retrieval_accuracy``: ``among`` (texts in the index), and for ``unseen_picture`` and
        ``unseen_caption`` an object of ``n`` (pictures), ``top1`` and ``top5`` (how many found it), or null where
        there are too few to leave out; only pictures whose caption the index holds are counted.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict

    captions = np.array([item.caption for item in pictures])
    _, groups = np.unique(captions, return_inverse=True)
    ids = index.ids_of(set(captions.tolist()))
    own = np.array([ids.get(caption, -1) for caption in captions.tolist()])
    counted = np.flatnonzero(own >= 0)[:_EVALUATED]
    found: dict[str, JsonValue] = {"among": len(index)}
    for name, splitter, by, enough in (
        ("unseen_picture", KFold(_FOLDS, shuffle=True, random_state=0), None, len(pictures)),
        ("unseen_caption", GroupKFold(_FOLDS), groups, groups.max() + 1),
    ):
        found[name] = None
        if enough >= _FOLDS and len(counted):
            queries = cross_val_predict(Ridge(alpha), states, keys, cv=splitter, groups=by)[counted]
            found[name] = _hits(index, queries, own[counted])
    return found


def _hits(index: CaptionIndex, queries: np.ndarray, own: Int[np.ndarray, " pictures"]) -> dict[str, JsonValue]:
    found, _ = index.search(queries, min(_AMONG, len(index)))
    hit = found == own[:, None]
    return {"n": len(own), "top1": int(hit[:, 0].sum()), "top5": int(hit.any(1).sum())}


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
    require_base(adapter, vlm.fingerprint, str(vlm.path))
    tensors = next(item.tensors for item in adapter.interventions if "query_weight" in item.tensors)
    (states,) = image_states(vlm, [picture])
    query = picture_query(states[None], torch.ones(1, len(states), 1), tensors["query_weight"], tensors["query_bias"])
    return query.numpy()
