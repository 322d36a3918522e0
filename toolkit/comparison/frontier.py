"""The frontier: which defences nobody beats on everything at once."""

from __future__ import annotations

from collections.abc import Sequence

Costs = tuple[float, ...]  # all of them better the smaller


def front(points: Sequence[Costs]) -> list[bool]:
    """Which points are on the Pareto front: no other is as good in all costs and better in one.

    Args:
        points: with the same number of costs each.
    """
    return [not any(_beats(other, one) for other in points) for one in points]


def _beats(one: Costs, other: Costs) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
