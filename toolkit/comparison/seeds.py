"""Several seeds of a defence as one: the means of their shares, and how far these scatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev

from ..evaluation.rates import wilson
from ..evaluation.result import Metric, Rate, Row
from .results import Spread


def mean_rates(found: Sequence[Mapping[Metric, Rate]]) -> dict[Metric, Rate]:
    """Means over seeds; the interval is that of as many records as one seed answered."""
    if len(found) == 1:
        return dict(found[0])
    return {metric: _mean([one[metric] for one in found]) for metric in found[0]}


def _mean(rates: Sequence[Rate]) -> Rate:
    n = rates[0].n
    count = sum(one.count for one in rates) / len(rates)
    low, high = wilson(count, n)
    return Rate(count=round(count), n=n, rate=count / n, low=low, high=high)


def mean_rows(tables: Sequence[tuple[Row, ...]]) -> tuple[Row, ...]:
    """The table of several seeds, whose records are the same."""
    if len(tables) == 1:
        return tables[0]
    return tuple(
        Row(
            group=rows[0].group,
            metrics=mean_rates([row.metrics for row in rows]),
            no_verdict=sum(row.no_verdict for row in rows),
        )
        for rows in zip(*tables, strict=True)
    )


def spread(found: Sequence[Mapping[Metric, Rate]]) -> dict[Metric, Spread]:
    """How far the shares of several seeds scatter."""
    shares = {metric: [one[metric].rate for one in found] for metric in found[0]}
    return {
        metric: Spread(deviation=stdev(some) if len(some) > 1 else None, low=min(some), high=max(some))
        for metric, some in shares.items()
    }
