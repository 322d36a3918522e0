"""Retrieval of texts for a picture, inside the graph (TGA, ICLR 2025, arXiv:2410.12662).

    q = (W h̄ + b) / ‖W h̄ + b‖,   s = E q,   R = the k texts with the largest s

with h̄ the mean state of a picture's tokens and the rows of E the normalised embeddings of the texts.

Ours: the paper embeds the picture with a CLIP tower of its own; here W and b are a ridge regression from the states
the model has anyway to the embeddings of their captions, so that any text embedder serves and the picture is encoded
once. Also ours, an optional correction: the picture's tokens move together towards the retrieved texts,

    h'_t = h_t + γ (v̄ − h̄),   v̄ the mean over R of the texts' mean states at the same site

which moves h̄ the share γ of the way and leaves the differences between the tokens as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..artifact.adapter import Adapter
from ..artifact.manifest import RetrievalInfo
from ..errors import InvalidArtifact, UsageError
from ..ops.op import Corrector, Hidden, Mask, Observer, Op

INFO, CAPTIONS = "retrieval", "captions"
MAX_KEYS = 2**24


def retrieval_of(adapters: Sequence[Adapter]) -> tuple[RetrievalInfo, tuple[str, ...]] | None:
    """How the stacked adapters retrieve, and the texts by id (none for an external index); None if they do not.

    Raises:
        UsageError: two adapters retrieve.
        InvalidArtifact: the attachments do not fit the op.
    """
    found = [adapter for adapter in adapters if INFO in adapter.attachments]
    if not found:
        return None
    if len(found) > 1:
        raise UsageError("Two adapters retrieve texts for a picture.", "Stack at most one retrieval adapter.")
    try:
        info = RetrievalInfo.model_validate(found[0].attachments[INFO])
    except ValueError as error:
        raise InvalidArtifact(f"The attachment {INFO!r} is not valid: {error}", "Fit the adapter again.") from None
    texts = found[0].attachments.get(CAPTIONS, [])
    if not isinstance(texts, list) or len(texts) != (0 if info.external else info.count):
        raise InvalidArtifact(f"The adapter does not hold the {info.count} texts of its index.", "Fit it again.")
    return info, tuple(map(str, texts))


def retrieves(op: Op) -> bool:
    """Whether an op looks texts up, or gives the query to look them up by."""
    return "query_weight" in op.params


def picture_query(
    hidden: Hidden, scope: Mask, weight: Float[Tensor, "d_key d_model"], bias: Float[Tensor, " d_key"]
) -> Float[Tensor, "batch d_key"]:
    """q, in float32: a sum over hundreds of tokens overflows float16."""
    return normalize(linear(_mean(hidden.float(), scope), weight, bias), dim=-1)


def top_keys(
    query: Float[Tensor, "batch d_key"], keys: Float[Tensor, "n d_key"], k: int
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Rows and scores of the k keys with the largest dot products, best first; equal scores go to the lower row.

    Which of equal scores comes first is open in PyTorch's top-k and on other devices. So rank is decided by one
    integer of score and row; scores nearer than 2⁻³⁰, far less than their rounding, count as equal.
    """
    scores = linear(query, keys.float())
    # counted, not an arange: that would stand in the graph as a constant of eight bytes a row
    row = torch.ones_like(scores, dtype=torch.int64).cumsum(-1)
    rank = torch.round(scores * 2**30).to(torch.int64) * MAX_KEYS - row
    ids = rank.topk(k, dim=-1).indices
    return ids, scores.gather(-1, ids)


def _mean(states: Hidden, scope: Mask) -> Float[Tensor, "batch d_model"]:
    return (states * scope).sum(1) / scope.sum(1).clamp_min(1)


class RetrievalQuery(Observer):
    """q alone, for an index outside the graph."""

    name = "RetrievalQuery"
    params = ("query_weight", "query_bias")
    outputs = ("retrieval_query",)

    def forward(self, hidden: Hidden, scope: Mask, *, query_weight: Tensor, query_bias: Tensor) -> tuple[Tensor, ...]:
        return (picture_query(hidden, scope, query_weight, query_bias),)


class RetrieveTopK(Observer):
    """R; the hidden state stays as it is. ``ranks`` holds 0…k−1: only its length counts."""

    name = "RetrieveTopK"
    params = ("query_weight", "query_bias", "keys", "ranks")
    outputs = ("retrieved_ids", "retrieved_scores")

    def forward(
        self, hidden: Hidden, scope: Mask, *, query_weight: Tensor, query_bias: Tensor, keys: Tensor, ranks: Tensor
    ) -> tuple[Tensor, ...]:
        return top_keys(picture_query(hidden, scope, query_weight, query_bias), keys, len(ranks))


class RetrievalCorrection(Corrector):
    """R, and the tokens moved towards it."""

    name = "RetrievalCorrection"
    params = ("query_weight", "query_bias", "keys", "ranks", "values", "strength")
    strength = "strength"
    outputs = ("retrieved_ids", "retrieved_scores")

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        *,
        query_weight: Tensor,
        query_bias: Tensor,
        keys: Tensor,
        ranks: Tensor,
        values: Tensor,
        strength: Tensor,
    ) -> tuple[Tensor, ...]:
        ids, scores = top_keys(picture_query(hidden, scope, query_weight, query_bias), keys, len(ranks))
        states = hidden.float()
        target = values[ids].float().mean(1)
        move = strength * (target - _mean(states, scope))
        return (states + scope * move[:, None]).to(hidden.dtype), ids, scores

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, **_: Tensor) -> Float[Tensor, ""]:
        """Differences between a picture's tokens are kept."""
        before, after = before.float(), after.float()
        moved = (after - before) * scope
        return (moved - _mean(moved, scope)[:, None] * scope).abs().amax() / before.abs().amax().clamp_min(1e-12)
