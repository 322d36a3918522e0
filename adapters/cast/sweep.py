"""What a sweep of CAST tries: how the condition is made, which layers are pushed, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, get_args

from ..artifact.adapter import Adapter
from ..protocols import Workbench
from ..sweeping import Plan, fixed
from .cast import candidates, used
from .choices import Condition
from .settings import CAST
from .statistics import ConditionStatistics, collect

STRENGTHS = (0.5, 1.0, 2.0)


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[CAST]:
    """First round: both conditions, every layer but the first and the last, all three strengths."""
    layers = range(1, depth - 1) or (depth - 1,)
    return fixed(
        [
            CAST(condition=condition, layers=(layer,), alpha=alpha)
            for condition, layer, alpha in product(get_args(Condition), layers, STRENGTHS)
        ],
        given,
    )


def refined(settings: CAST, width: int, given: Mapping[str, Any]) -> list[CAST]:
    """Second round: other strengths."""
    tried = [settings.but(alpha=by * settings.alpha) for by in (0.75, 1.25, 1.5)]
    return fixed(tried, given)


def solver(bench: Workbench) -> Callable[[CAST], Adapter]:
    """Statistics are collected once for all layers; a setting only solves."""
    known: list[ConditionStatistics] = []

    def solve(settings: CAST) -> Adapter:
        depth = bench.model.base.n_layers
        candidates(settings, depth)
        if not known:
            known.append(collect(bench.model, bench.records, range(depth)))
        return settings.solve(bench.model, known[0], used(bench.records))

    return solve


PLAN = Plan(coarse, refined, lambda settings: settings.condition, solver)
