"""What a sweep of NullSteer tries: λ, what holds harmless states and the layers depend on the model.

Two rounds: whose harmful states, layers and strengths; then the constraint and finer strengths around the best of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, get_args

from ..artifact.adapter import Adapter
from ..artifact.sites import Site
from ..protocols import Workbench
from ..sweeping import Plan, fixed
from .choices import Harmful
from .settings import NullSteer
from .statistics import NullStatistics, collect, require_labels, targets

STRENGTHS = ((1.0, 2.0), (1.0, 3.0))  # at prefill and in decoding


def layer_runs(depth: int) -> list[tuple[int, ...]]:
    """Single layers of the middle half, and pairs of them."""
    layers = range(depth // 4, max(depth // 4 + 1, depth * 3 // 4))
    return [(layer,) for layer in layers] + [(layer, layer + 1) for layer in layers[:-1]]


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[NullSteer]:
    """First round; ``given`` settings are fixed. Layers share the strength, or they would add up."""
    start = NullSteer(**{name: given[name] for name in ("variant", "rank", "constraint") if name in given})
    found = [
        start.but(harmful=harmful, layers=layers, strength=prefill / len(layers), decode_strength=decode / len(layers))
        for harmful, layers, (prefill, decode) in product(get_args(Harmful), layer_runs(depth), STRENGTHS)
    ]
    return fixed(found, given)


def refined(settings: NullSteer, width: int, given: Mapping[str, Any]) -> list[NullSteer]:
    """Second round around one setting."""
    prefill, decode = settings.strengths
    tried = [settings.but(strength=prefill * by, decode_strength=decode * by) for by in (0.75, 1.5)]
    tried.append(settings.but(strength=prefill, decode_strength=1.5 * decode))
    if settings.constraint == "penalty":
        tried += [settings.but(penalty=by * settings.penalty) for by in (1 / 3, 3)]
    else:
        tried += [settings.but(dropped=count) for count in sorted({0, width // 8, width // 4} - {settings.dropped})]
        tried += [settings.but(ridge=ridge) for ridge in (1.0, 10.0)]
    return fixed(tried, given)


def solver(bench: Workbench) -> Callable[[NullSteer], Adapter]:
    """Statistics are collected once for all layers of a site; a setting only solves."""
    known: dict[tuple[str, str, str], NullStatistics] = {}

    def solve(settings: NullSteer) -> Adapter:
        used = require_labels(bench.records, settings.harmful)
        key = (settings.site, settings.towards, settings.harmless)
        if key not in known:
            outcomes = bench.outcomes() if settings.towards == "refused" else None
            sites = [Site(settings.site, layer) for layer in range(bench.model.base.n_layers)]
            moved_to = targets(used, settings.towards, outcomes)
            known[key] = collect(bench.model, used, sites, moved_to, settings.harmless)
        return settings.solve(bench.model, known[key], used)

    return solve


PLAN = Plan(coarse, refined, lambda settings: settings.harmful, solver)
