"""What a sweep of CARE tries: layers, k, α, fusion and site depend on the model.

Two rounds: fusions, sites and both variants at few windows, ranks and strengths; then rank, α and the neighbouring
choices around the best of each variant and fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from ..artifact.adapter import Adapter
from ..artifact.sites import Site
from ..protocols import Example, Workbench
from ..sweeping import Plan, fixed
from .settings import CARE
from .statistics import CareStatistics, Role, collect, roles
from .usual import windows

_FUSIONS = ("adaptive", "sequential", "parallel", "masked")  # injection with β = 1 is sequential with α = 1


class CareSolver:
    """Adapters of many settings from few passes: statistics of all layers are kept per contrast, tokens and site."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._roles: dict[str, dict[Role, list[Example]]] = {}
        self._statistics: dict[Any, CareStatistics] = {}

    def __call__(self, care: CARE) -> Adapter:
        """The adapter that a fit would give."""
        model, by_role = self._bench.model, self._by_role(care)
        kind = care.source(0).kind
        key = (care.contrast, care.tokens, kind)
        if key not in self._statistics:
            sites = [Site(kind, layer) for layer in range(model.base.n_layers)]
            self._statistics[key] = collect(model, by_role, sites, care.tokens)
        used = [record for group in by_role.values() for record in group]
        return care.solve(model, self._statistics[key], used)

    def _by_role(self, care: CARE) -> dict[Role, list[Example]]:
        if care.contrast not in self._roles:
            outcomes = self._bench.outcomes() if care.contrast == "behaviour" else None
            self._roles[care.contrast] = roles(self._bench.records, care.contrast, outcomes)
        return self._roles[care.contrast]


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[CARE]:
    """First round, with k as a share of the width; ``given`` settings are fixed.

    A contrast of behaviour, because removing what harmful records of any kind have in common removes the model's
    own sign of harm, by which it refuses.
    """
    runs, eighth = windows(depth), max(1, width // 8)
    tried: list[CARE] = []
    for name, rank in product(("quarter", "half", "later"), (eighth, eighth * 3 // 2)):
        block = CARE(layers=runs[name], rank=max(1, rank), site="block", contrast="behaviour")
        tried += [block.but(fusion=fusion) for fusion in _FUSIONS]
        tried.append(block.but(modalities="textual"))
    for name, rank in product(("half", "all"), (eighth, 2 * eighth)):
        mlp = CARE(layers=runs[name], rank=rank, contrast="behaviour")
        tried += [mlp.but(fusion=fusion) for fusion in ("adaptive", "sequential")]
        letter = CARE(variant="official", layers=runs[name], rank=rank, selection="kernel")
        tried += [letter.but(alpha=alpha) for alpha in (1.0, 4.0)]
    return fixed(tried, given)


def refined(care: CARE, width: int, given: Mapping[str, Any]) -> list[CARE]:
    """Second round around one setting: rank, strength and what else its kind leaves open."""
    ranks = {max(1, min(round(care.rank * factor), width)) for factor in (0.75, 1.25, 1.5)}
    tried = [care.but(rank=rank) for rank in sorted(ranks)]
    strengths: Sequence[float] = (0.5, 2.0) if care.variant == "official" else (0.75, 1.25)
    if care.fusion != "injection":
        tried += [care.but(alpha=alpha) for alpha in strengths]
    if care.variant == "official":
        tried.append(care.but(contrast="behaviour"))
        tried += [care.but(fusion=fusion) for fusion in (*_FUSIONS[1:], "injection")]
        return fixed(tried, given)
    tried.append(care.but(selection="kernel"))
    if care.fusion == "sequential":
        tried += [care.but(fusion="injection", beta=beta) for beta in (0.5, 1.0, 1.5)]
    return fixed(tried, given)


def solver(bench: Workbench) -> Callable[[CARE], Adapter]:
    """See :class:`CareSolver`."""
    return CareSolver(bench)


PLAN = Plan(coarse, refined, lambda care: (care.variant, care.fusion), solver)
