"""Does a graph retrieve right? Judged on random pictures, in float64.

Ids are not compared with PyTorch's, since near-ties may swap: each must have a score as high as its rank demands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import picture_query, retrieves
from ..manifest import ExportManifest
from ..surgery.bake import Placed
from .exposed import ExposedGraph, probes
from .gap import Gap


def require_response(folder: Path, manifest: ExportManifest, placed: Sequence[Placed]) -> None:
    """Refuse a query that is the same whatever the picture.

    Raises:
        UsageError: naming the op.
    """
    for one, seen in _runs(folder, manifest, placed):
        scores = np.concatenate([extras["query" if "query" in extras else "scores"] for _, extras in seen])
        if len(np.unique(scores[np.isfinite(scores).all(1)], axis=0)) < 2:
            raise UsageError(
                f"{one.item.op} at {one.item.site} retrieves the same whatever the picture.",
                "Its query may be zero; fit the adapter again.",
            )


def check_retrieval(folder: Path, manifest: ExportManifest, placed: Sequence[Placed]) -> Iterator[tuple[Placed, Gap]]:
    """Each retrieving op as the graph computes it, on random pictures of several magnitudes.

    Yields:
        The intervention; the largest error of a query's entry or a score, or by which an id's score in float64 falls
        short of its rank's (NaN for an id that is none, or that comes twice).
    """
    for one, seen in _runs(folder, manifest, placed):
        gaps = [_judge(one, before, extras) for before, extras in seen]
        gap = gaps[0]
        for other in gaps[1:]:
            gap = gap.join(other)
        yield one, gap


def _runs(
    folder: Path, manifest: ExportManifest, placed: Sequence[Placed]
) -> Iterator[tuple[Placed, list[tuple[np.ndarray, dict[str, np.ndarray]]]]]:
    """Per retrieving op and probe: the hidden state it read, and its extras by the last part of their names."""
    for one in placed:
        if retrieves(one.item.make_op()):
            graph = ExposedGraph(folder, manifest, "vision_encoder", [one])
            yield one, [_plain(graph.extras(feeds, one.index)) for feeds in probes(graph, manifest)]


def _plain(found: tuple[np.ndarray, Mapping[str, np.ndarray]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    before, extras = found
    return before, {name.rpartition("_")[2]: value for name, value in extras.items()}


def _judge(one: Placed, before: np.ndarray, extras: Mapping[str, np.ndarray]) -> Gap:
    tensors = one.item.tensors
    rows = np.isfinite(before).all(axis=(1, 2))  # a random picture may overflow float16 on its way
    hidden = torch.from_numpy(before[rows])
    query = picture_query(hidden, torch.ones_like(hidden[..., :1]), tensors["query_weight"], tensors["query_bias"])
    if "query" in extras:
        return Gap.between(query.numpy(), extras["query"][rows])
    exact = (query.double() @ tensors["keys"].double().T).numpy()
    ids, scores = extras["ids"][rows], extras["scores"][rows]
    k, count = len(tensors["ranks"]), exact.shape[1]
    whole = ids.shape == scores.shape == (len(exact), k) and ((ids >= 0) & (ids < count)).all()
    if not whole or any(len(set(row)) < k for row in ids.tolist()):
        return Gap(float("nan"), 1.0, ids.size)
    given = np.take_along_axis(exact, ids, axis=1)
    short = np.sort(exact, axis=1)[:, ::-1][:, :k] - given
    return Gap(float(max(np.abs(scores - given).max(initial=0), short.max(initial=0))), 1.0, ids.size)
