"""What a sweep of NullSteer tries: λ, the number of dropped directions and the layers depend on the model.

Two rounds: whose harmful states, layers and strengths; then the null space, the ridge and finer strengths around the
best of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, get_args

from ..artifact.adapter import Adapter
from ..artifact.sites import Site
from ..protocols import Workbench
from ..sweeping import Plan, fixed
from .settings import Harmful, NullSteer
from .statistics import NullStatistics, collect, require_labels, targets

STRENGTHS = ((1.0, 2.0), (1.0, 1.0), (2.0, 2.0))  # at prefill and in decoding


def layer_runs(depth: int) -> list[tuple[int, ...]]:
    """Single layers of the middle half, and runs that begin there and leave out the last layer."""
    start, stop = depth // 2, max(depth // 2 + 1, depth * 7 // 8)
    runs = {(layer,) for layer in range(depth // 4, stop)} | {tuple(range(start, stop))}
    return sorted(runs | {tuple(range(max(0, start - 1), stop - 1))} - {()})


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[NullSteer]:
    """First round; ``given`` settings are fixed."""
    start = NullSteer(**{name: given[name] for name in ("variant", "rank") if name in given})
    found = [
        start.but(harmful=harmful, layers=layers, strength=prefill, decode_strength=decode)
        for harmful, layers, (prefill, decode) in product(get_args(Harmful), layer_runs(depth), STRENGTHS)
    ]
    return fixed(found, given)


def refined(settings: NullSteer, width: int, given: Mapping[str, Any]) -> list[NullSteer]:
    """Second round around one setting."""
    prefill, decode = settings.strengths
    tried = [settings.but(dropped=count) for count in sorted({0, width // 32, width // 8, width // 4} - {width // 16})]
    tried += [settings.but(ridge=ridge) for ridge in (0.01, 1.0)]
    tried += [settings.but(strength=prefill * by, decode_strength=decode * by) for by in (0.5, 0.75, 1.5)]
    tried.append(settings.but(strength=prefill, decode_strength=1.5 * decode))
    return fixed(tried, given)


def solver(bench: Workbench) -> Callable[[NullSteer], Adapter]:
    """Statistics are collected once for all layers of a site; a setting only solves."""
    known: dict[tuple[str, str], NullStatistics] = {}

    def solve(settings: NullSteer) -> Adapter:
        used = require_labels(bench.records, settings.harmful)
        key = (settings.site, settings.towards)
        if key not in known:
            outcomes = bench.outcomes() if settings.towards == "refused" else None
            sites = [Site(settings.site, layer) for layer in range(bench.model.base.n_layers)]
            known[key] = collect(bench.model, used, sites, targets(used, settings.towards, outcomes))
        return settings.solve(bench.model, known[key], used)

    return solve


PLAN = Plan(coarse, refined, lambda settings: settings.harmful, solver)
