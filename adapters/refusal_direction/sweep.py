"""What a sweep of the refusal direction tries: layers, and how much is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..artifact.adapter import Adapter
from ..protocols import Workbench
from ..sweeping import Plan, fixed
from .settings import RefusalDirection
from .statistics import collect, texts_of


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[RefusalDirection]:
    """First round: every layer but the last."""
    start = RefusalDirection(**{name: given[name] for name in ("variant", "seed") if name in given})
    return fixed([start.but(layer=layer) for layer in range(max(1, depth - 1))], given)


def refined(settings: RefusalDirection, width: int, given: Mapping[str, Any]) -> list[RefusalDirection]:
    """Second round: other strengths."""
    if settings.variant == "ablation":
        return []
    return fixed([settings.but(strength=by * settings.strength) for by in (0.25, 0.5, 0.75, 1.5)], given)


def solver(bench: Workbench) -> Callable[[RefusalDirection], Adapter]:
    """Means are collected once for all layers."""
    texts = texts_of(bench.records)
    means = collect(bench.model, texts, range(bench.model.base.n_layers))
    return lambda settings: settings.solve(bench.model, means, texts)


PLAN = Plan(coarse, refined, lambda settings: settings.variant, solver)
