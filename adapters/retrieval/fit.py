"""Fitting retrieval: from captioned pictures to the query that finds their captions.

W and b are a ridge regression from the mean image state at the projector to the key of the picture's caption; its
penalty minimises the leave-one-out error. No labels are used. How often a picture finds its own caption is measured
twice, by cross-validation: with the picture left out of the fit, and with all pictures of its caption left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import JsonValue
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, RetrievalInfo, library_versions
from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Workbench
from .retrieval import CAPTIONS, INFO
from .settings import Retrieval
from .sources import Index, PictureSource

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


def fit(
    retrieval: Retrieval, source: PictureSource, *, corrected_by: Sequence[Mapping[str, JsonValue]] = ()
) -> Adapter:
    """See :meth:`Retrieval.fit`."""
    index, k = source.index, retrieval.k
    if k > len(index):
        raise UsageError(f"{k} texts cannot be retrieved from {len(index)}.", f"Ask for 1 to {len(index)}.")
    if not retrieval.external and len(index) > retrieval.in_graph_limit:
        raise UsageError(
            f"The index holds {len(index)} texts; a graph takes {retrieval.in_graph_limit}.",
            "Pass --external-index and search it beside the graph, or build a smaller index.",
        )
    keys = source.keys()
    states = source.states()
    head = QueryHead.fit(states, keys)
    tensors = {"query_weight": head.weight, "query_bias": head.bias}
    if not retrieval.external:
        # A copy: the adapter outlives the memory map.
        tensors |= {"keys": torch.from_numpy(np.array(index.keys)), "ranks": torch.arange(k)}
    if retrieval.correction is not None:
        tensors |= {"values": source.values(), "strength": torch.tensor(float(retrieval.correction))}
    op = {"external": "RetrievalQuery", "top-k": "RetrieveTopK", "correction": "RetrievalCorrection"}
    info = RetrievalInfo(
        k=k, prefix=retrieval.prefix, external=retrieval.external, count=len(index), index=index.digest
    )
    attachments: dict[str, JsonValue] = {
        INFO: info.model_dump(mode="json"),
        ACCURACY: accuracy(index, source.captions, states, keys, head.alpha),
    }
    if not retrieval.external:
        attachments[CAPTIONS] = [index[at] for at in range(len(index))]
    return Adapter(
        AdapterInfo(
            method="TGA retrieval",
            variant=retrieval.variant,
            sign_convention="queries and keys have length 1; a larger score is nearer",
            hyperparameters={
                **retrieval.values(),
                "alpha": head.alpha,
                "embedder": source.embedder,
                "corrected_by": [dict(item) for item in corrected_by],
            },
            seed=None,
            base=source.base,
            data=source.data,
            versions=library_versions(),
        ),
        (Intervention(op[retrieval.variant], _PROJECTOR, "all", "prefill", tensors),),
        attachments,
    )


def fit_on(retrieval: Retrieval, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    return fit(retrieval, bench.pictures(), corrected_by=bench.corrected_by)


def accuracy(
    index: Index,
    captions: Sequence[str],
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

    _, groups = np.unique(np.array(captions), return_inverse=True)
    ids = index.ids_of(set(captions))
    own = np.array([ids.get(caption, -1) for caption in captions])
    counted = np.flatnonzero(own >= 0)[:_EVALUATED]
    found: dict[str, JsonValue] = {"among": len(index)}
    for name, splitter, by, enough in (
        ("unseen_picture", KFold(_FOLDS, shuffle=True, random_state=0), None, len(captions)),
        ("unseen_caption", GroupKFold(_FOLDS), groups, groups.max() + 1),
    ):
        found[name] = None
        if enough >= _FOLDS and len(counted):
            queries = cross_val_predict(Ridge(alpha), states, keys, cv=splitter, groups=by)[counted]
            found[name] = _hits(index, queries, own[counted])
    return found


def _hits(index: Index, queries: np.ndarray, own: Int[np.ndarray, " pictures"]) -> dict[str, JsonValue]:
    found, _ = index.search(queries, min(_AMONG, len(index)))
    hit = found == own[:, None]
    return {"n": len(own), "top1": int(hit[:, 0].sum()), "top5": int(hit.any(1).sum())}
