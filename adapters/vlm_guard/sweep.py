"""What a sweep of VLM-Guard tries: the paper names neither m, nor α, nor the layers.

Two rounds: all layer windows and variants at default strength, then rank, α and threshold around the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, get_args

from ..artifact.adapter import Adapter
from ..artifact.sites import Site
from ..protocols import Workbench
from ..statistics.choices import Direction
from ..sweeping import Plan, fixed
from .settings import Gate, Variant, VLMGuard
from .statistics import GuardStatistics, collect

# Of direction and gate; first the paper's.
_READINGS: tuple[tuple[Direction, Gate], ...] = (("svd", "paper"), ("mean", "calibrated"), ("mean", "whitened"))


def layer_windows(depth: int) -> list[tuple[int, ...]]:
    """Ranges of layers worth trying: single layers, and overlapping runs of half the depth."""
    width = max(2, depth // 2)
    runs = [tuple(range(start, start + width)) for start in range(0, depth - width + 1, max(1, width // 2))]
    return sorted({(layer,) for layer in range(depth)} | set(runs))


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[VLMGuard]:
    """First round: every variant, direction and gate at every layer window; ``given`` settings are fixed.

    One layer alone is pushed harder than several, or the later ones undo it.
    """
    tried = []
    for layers, variant in product(layer_windows(depth), get_args(Variant)):
        if variant == "orthogonal":  # no gate and no α
            tried += [
                VLMGuard(variant=variant, direction=direction, layers=layers, scope="all", phase="both")
                for direction in get_args(Direction)
            ]
        else:
            alpha = (4.0 if variant == "steer" else 2.0) if len(layers) == 1 else 1.0
            tried += [
                VLMGuard(variant=variant, direction=direction, gate=gate, layers=layers, alpha=alpha)
                for direction, gate in _READINGS
            ]
    return fixed(tried, given)


def refined(guard: VLMGuard, width: int, given: Mapping[str, Any]) -> list[VLMGuard]:
    """Second round: rank, α and threshold around one setting."""
    ranks = (1, 2)
    if guard.variant == "orthogonal":
        return fixed([guard.but(rank=rank) for rank in ranks], given)
    alphas = (0.5, 2.0, 4.0, 8.0) if guard.variant == "steer" else (1.0, 1.5, 2.0, 3.0)
    rates: list[dict[str, float]] = [{}]
    if guard.gate != "paper":
        rates = [{"false_positive_rate": rate} for rate in (0.01, 0.03, 0.06)]
    return fixed(
        [guard.but(rank=rank, alpha=alpha, **rate) for rank, alpha, rate in product(ranks, alphas, rates)], given
    )


def solver(bench: Workbench) -> Callable[[VLMGuard], Adapter]:
    """Statistics are collected once for all layers; a setting only solves."""
    known: dict[str, GuardStatistics] = {}

    def solve(guard: VLMGuard) -> Adapter:
        if guard.site not in known:
            sites = [Site(guard.site, layer) for layer in range(bench.model.base.n_layers)]
            known[guard.site] = collect(bench.model, bench.records, sites, text_model=bench.text_model())
        return guard.solve(bench.model, known[guard.site], bench.records)

    return solve


PLAN = Plan(coarse, refined, lambda guard: guard.variant, solver)
