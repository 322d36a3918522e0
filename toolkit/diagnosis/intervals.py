"""95 % intervals by the percentile bootstrap (Efron, 1979), with a fixed seed so that they reproduce.

Resampling n values with replacement is a multinomial draw of weights, so one matrix product gives the means of all
resamples of any number of curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from ...adapters.artifact.manifest import Strict

_RESAMPLES = 2000
_BOUNDS = (2.5, 97.5)


class Estimate(Strict):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@lru_cache(maxsize=4)  # of 1000 values 16 MB each
def _weights(seed: int, *counts: int) -> tuple[Float[np.ndarray, "resamples n"], ...]:
    """For each of the samples, of ``counts`` values, its resamples; drawn one after the other."""
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n for n in counts)


def mean_intervals(
    values: Float[np.ndarray, "*curves n"], seed: int
) -> tuple[Float[np.ndarray, "*curves"], Float[np.ndarray, "*curves"]]:
    """Lower and upper bounds of the means over the last axis; all curves share the resamples."""
    values = np.asarray(values, dtype=np.float64)
    (weights,) = _weights(seed, values.shape[-1])
    means = values @ weights.T
    low, high = np.percentile(means, _BOUNDS, axis=-1)
    return low, high


def estimate_mean(values: Sequence[float] | np.ndarray, seed: int) -> Estimate:
    """The mean of ``values`` (not empty) with its interval."""
    values = np.asarray(values, dtype=np.float64)
    low, high = mean_intervals(values, seed)
    return Estimate(value=float(values.mean()), low=float(low), high=float(high))


def estimate_difference(first: np.ndarray, second: np.ndarray, seed: int) -> Estimate:
    """Mean of ``first`` minus mean of ``second``, each resampled by itself."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    of_first, of_second = _weights(seed, len(first), len(second))
    means = of_first @ first - of_second @ second
    low, high = np.percentile(means, _BOUNDS)
    return Estimate(value=float(first.mean() - second.mean()), low=float(low), high=float(high))


def estimate_auroc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], seed: int) -> Estimate:
    """Area under the ROC curve, resampled within each class; ties count half."""
    above, below = scores[positive], scores[~positive]
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    of_above, of_below = _weights(seed, len(above), len(below))
    drawn = ((of_above @ wins) * of_below).sum(1)
    low, high = np.percentile(drawn, _BOUNDS)
    return Estimate(value=float(wins.mean()), low=float(low), high=float(high))
