"""NullSteer: a refusal that is learnt as a linear map of the state, in the null space of harmless states.

AlphaSteer ("Learning Refusal Steering with Principled Null-Space Constraint", arXiv:2506.07022) for language models and
NullSteer (arXiv:2603.22094) for vision-language models ask for a map Δ that turns harmful states into a refusal and
harmless ones into nothing, so that it needs no gate::

    h' = h + λ ΔP h,   ‖ΔP H_m − R‖² + a‖ΔP‖² least,   P H_b ≈ 0

H_b, H_m hold harmless and harmful states as columns, R the refusal direction r of each harmful one.

Constraint: ``projection``  P = I − V Vᵀ, V the strongest eigenvectors of H_b H_bᵀ: ``dropped`` of them, or as many as
                            hold the share ``variance`` of its trace (the papers)
            ``penalty``     P = I, and γ‖Δ H_b‖²/n_b is added to what is least (ours): no direction is forbidden, and
                            none is free

Solution, with M = H_m H_mᵀ/n the second moment of harmful states, m their mean and B that of harmless ones::

    K = P (P M P + aI)⁻¹ P   or   K = (M + γB + aI)⁻¹
    ``rank-one``  R repeats one r:      Δ P = r wᵀ,    w = K m
    ``low-rank``  r_c by category c:    Δ P = U Wᵀ,    W = K Σ_c (n_c/n) m_c (Uᵀ r_c)ᵀ,

U the first left singular vectors of the r_c weighted by √(n_c/n). With one category and rank 1 the second is the
first. wᵀh is near 1 for harmful states and near 0 for harmless ones.

r is read at the *block's* output, also where the change is made in a branch that is added to it: the mean of
harmful text that the model refuses (``towards``), less the mean of harmless text.

Harmless states: of the ``tokens`` of prompts and responses (ours), because the map acts on them all, or of the prompts'
``last`` positions (the papers).

Deviations: a is a share of the mean squared component, so that it means the same at every layer and width (ours).
λ is set for prefill and for decoding apart: most of the effect is in decoding, where a refusal begins (ours). The
category form of R is our reading of a refusal that differs between records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Phase, Site, sites_of
from ..errors import UsageError
from ..protocols import Example, Workbench
from ..settings import spell
from ..statistics.threads import one_thread
from .settings import NullSteer
from .statistics import NullStatistics, Source, collect, require_labels, targets

SIGN = "r points from harmless text to refused text, so that a positive product with w moves towards refusal"


@dataclass(frozen=True)
class NullSpace:
    """The space in which a map may act.

    Attributes:
        projector: P, symmetric and idempotent.
        dropped: how many directions it lacks.
        kept: share of harmless states' second moment that lies in it.
    """

    projector: Float[Tensor, "d_model d_model"]
    dropped: int
    kept: float


def fit(
    settings: NullSteer,
    model: Source,
    records: Iterable[Example],
    *,
    outcomes: Mapping[str, str] | None = None,
) -> Adapter:
    """See :meth:`NullSteer.fit`."""
    used = require_labels(list(records), settings.harmful)
    sites = sites_of(settings, model.base.n_layers)
    statistics = collect(model, used, sites, targets(used, settings.towards, outcomes), settings.harmless)
    return solve(settings, model, statistics, used)


def fit_on(settings: NullSteer, bench: Workbench) -> Adapter:
    """Fit with what a workbench has; towards refused requests the model is asked first which it refuses."""
    outcomes = bench.outcomes() if settings.towards == "refused" else None
    bench.phase("fitting")
    return fit(settings, bench.model, bench.records, outcomes=outcomes)


def require_records(settings: NullSteer, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that cannot give what the settings ask for; no model is needed.

    Raises:
        UsageError: records of a label or carrier are missing, or there are fewer categories than ``rank``, or nothing
            is left of the width.
    """
    used = require_labels(records, settings.harmful)
    require_width(settings, d_model)
    if settings.variant == "low-rank":
        moved = [
            one for one in used if one.label == "harmful" and (settings.harmful == "both" or one.carrier == "text")
        ]
        require_categories(settings, len({record.category for record in moved}))


def require_width(settings: NullSteer, d_model: int) -> None:
    """Refuse a null space without a direction.

    Raises:
        UsageError: all directions are dropped, or fewer than none.
    """
    if settings.dropped is not None and not 0 <= settings.dropped < d_model:
        raise UsageError(
            f"{spell(NullSteer, 'dropped')} cannot be {settings.dropped}: states have {d_model} dimensions, and one at "
            "least must be left.",
            f"Choose from 0 to {d_model - 1}.",
        )


def require_categories(settings: NullSteer, found: int) -> None:
    """Refuse more directions than there are categories.

    Raises:
        UsageError: naming both numbers.
    """
    if settings.rank > found:
        raise UsageError(
            f"{spell(NullSteer, 'rank')} cannot be {settings.rank}: harmful records of the fit split are of {found} "
            f"categor{'y' if found == 1 else 'ies'}, and each has one direction.",
            f"Ask for {found} or less.",
        )


def solve(settings: NullSteer, model: Source, statistics: NullStatistics, records: Sequence[Example]) -> Adapter:
    """See :meth:`NullSteer.solve`.

    The attachment ``nullsteer`` holds ``{"layers": {str(layer): entry}}`` with an entry per layer::

        {"site": str, "dropped": directions of harmless states that are left alone, "kept": share of their second
         moment that is not (both absent with a penalty), "rank": of the map, "refusal": ‖r‖, "harmful": mean of
         rᵀΔPh/‖r‖² over the harmful states that must move, "harmless": its root mean square over harmless states}
    """
    require_width(settings, model.base.d_model)
    interventions: list[Intervention] = []
    found: dict[str, Any] = {}
    for site in sites_of(settings, model.base.n_layers):
        up, down, space = solution(settings, statistics, site)
        interventions += _interventions(settings, site, up, down)
        found[str(site.layer)] = _describe(settings, statistics, site, up, down, space)
    layers = [item.site.layer for item in interventions]
    info = AdapterInfo(
        method="nullsteer",
        variant=settings.variant,
        sign_convention=SIGN,
        hyperparameters={**settings.values(), "layers": sorted({layer for layer in layers if layer is not None})},
        seed=None,
        base=model.base,
        data=describe_data(records),
        versions=library_versions(),
    )
    return Adapter(info, tuple(interventions), {"nullsteer": {"layers": found}})


@one_thread(blas=False)
def null_space(
    second_moment: Float[Tensor, "d_model d_model"], dropped: int, variance: float | None = None
) -> NullSpace:
    """P for harmless states of this second moment; ``variance`` says what is dropped if it is given."""
    values, vectors = torch.linalg.eigh(second_moment)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    count = dropped if variance is None else int((shares < variance).sum()) + 1
    count = min(count, len(values) - 1)
    gone = vectors[:, :count]
    projector = torch.eye(len(values), dtype=values.dtype) - gone @ gone.T
    kept = float(values[count:].sum() / values.sum())
    return NullSpace((projector + projector.T) / 2, count, kept)


@one_thread(blas=False)
def solution(
    settings: NullSteer, statistics: NullStatistics, site: Site
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_model rank"], NullSpace | None]:
    """U and W of ΔP = U Wᵀ at a site, and the null space that it acts in, if it does."""
    assert site.layer is not None
    moved, harmless = statistics.moved(site, settings.harmful), statistics.harmless[site]
    if settings.variant == "rank-one":
        up, sources = statistics.refusal(site.layer)[:, None], moved.mean[:, None]
    else:
        up, sources = _by_category(settings, statistics, site)
    width = len(moved.mean)
    eye = torch.eye(width, dtype=sources.dtype)
    second = moved.second_moment() / moved.count
    if settings.constraint == "penalty":
        held = second + settings.penalty * harmless.second_moment() / harmless.count
        return up, torch.linalg.solve(held + settings.ridge * second.trace() / width * eye, sources), None
    dropped = width // 16 if settings.dropped is None else settings.dropped
    space = null_space(harmless.second_moment(), dropped, settings.variance)
    inside = space.projector @ second @ space.projector
    a = settings.ridge * inside.trace() / width
    return up, space.projector @ torch.linalg.solve(inside + a * eye, space.projector @ sources), space


def _by_category(
    settings: NullSteer, statistics: NullStatistics, site: Site
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_model rank"]]:
    """U, and Σ_c (n_c/n) m_c (Uᵀ r_c)ᵀ."""
    assert site.layer is not None
    groups = statistics.categories(site, settings.harmful)
    require_categories(settings, len(groups))
    directions = torch.stack([statistics.refusal(site.layer, category) for category in groups], dim=1)
    sums = torch.stack([mean.total for mean in groups.values()], dim=1)
    counts = torch.tensor([mean.count for mean in groups.values()], dtype=torch.float64)
    left, _, _ = torch.linalg.svd(directions * (counts / counts.sum()).sqrt(), full_matrices=False)
    up = left[:, : settings.rank]
    largest = up.gather(0, up.abs().argmax(0, keepdim=True))
    up = up * torch.where(largest < 0, -1.0, 1.0)
    return up, (sums / counts.sum()) @ (directions.T @ up)


def _interventions(
    settings: NullSteer, site: Site, up: Float[Tensor, "d_model rank"], down: Float[Tensor, "d_model rank"]
) -> Iterator[Intervention]:
    prefill, decode = settings.strengths
    phases: dict[Phase, float] = {"prefill": prefill, "decode": decode}
    if prefill == decode:
        phases = {"both": prefill}
    for phase, strength in phases.items():
        if strength:
            tensors = {"up": up, "down": down, "strength": torch.tensor(strength)}
            stored = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
            yield Intervention("NullSpaceSteering", site, "all", phase, stored)


@one_thread(blas=False)
def _describe(
    settings: NullSteer, statistics: NullStatistics, site: Site, up: Tensor, down: Tensor, space: NullSpace | None
) -> dict[str, Any]:
    assert site.layer is not None
    refusal = statistics.refusal(site.layer)
    reading = down @ (up.T @ refusal) / refusal.square().sum()
    moved, harmless = statistics.moved(site, settings.harmful), statistics.harmless[site]
    square = reading @ harmless.second_moment() @ reading / harmless.count
    return {
        "site": str(site),
        **({} if space is None else {"dropped": space.dropped, "kept": space.kept}),
        "rank": up.shape[1],
        "refusal": float(refusal.norm()),
        "harmful": float(moved.mean @ reading),
        "harmless": float(square.clamp(min=0).sqrt()),
    }
