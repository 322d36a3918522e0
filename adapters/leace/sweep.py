"""What a sweep of LEACE tries: where it acts, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from ..artifact.adapter import Adapter
from ..artifact.sites import Phase, Site
from ..protocols import Workbench
from ..sweeping import Plan, fixed
from .settings import LEACE
from .statistics import ConceptStatistics, collect, used

PHASES: tuple[Phase, ...] = ("prefill", "both")


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[LEACE]:
    """First round: every layer alone, and all of the middle half; at the prompt, or at the answer, too."""
    start = LEACE(**{name: given[name] for name in ("variant", "concept") if name in given})
    runs = [(layer,) for layer in range(depth)] + [tuple(range(depth // 4, max(depth // 4 + 1, depth * 3 // 4)))]
    return fixed([start.but(layers=layers, phase=phase) for layers, phase in product(runs, PHASES)], given)


def refined(settings: LEACE, width: int, given: Mapping[str, Any]) -> list[LEACE]:
    """Second round: more and less of it, and the last position alone."""
    tried = [settings.but(beta=by * settings.beta) for by in (0.5, 0.75, 1.25, 1.5)]
    return fixed([*tried, settings.but(scope="last")], given)


def solver(bench: Workbench) -> Callable[[LEACE], Adapter]:
    """Statistics are collected once for all layers of a site; a setting only solves."""
    known: dict[tuple[str, str, str], ConceptStatistics] = {}

    def solve(settings: LEACE) -> Adapter:
        chosen = used(bench.records, settings.concept)
        key = (settings.site, settings.concept, settings.variant)
        if key not in known:
            sites = [Site(settings.site, layer) for layer in range(bench.model.base.n_layers)]
            known[key] = collect(bench.model, chosen, sites, settings.concept, settings.variant)
        return settings.solve(bench.model, known[key], chosen)

    return solve


PLAN = Plan(coarse, refined, lambda settings: settings.concept, solver)
