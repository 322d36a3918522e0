"""Shares with their intervals, and how well scores separate; needs NumPy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

_Z = NormalDist().inv_cdf(0.975)


def wilson(count: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of ``count`` out of ``n`` (positive), without continuity correction.

    With p = count / n and z = 1.96: (2np + z² ± z √(4np(1 − p) + z²)) / 2(n + z²) (Newcombe 1998, method 3).
    """
    p = count / n
    scale = 2 * (n + _Z**2)
    centre = (2 * n * p + _Z**2) / scale
    half = _Z / scale * sqrt(4 * n * p * (1 - p) + _Z**2)
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)


def auroc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann and Whitney's U over its largest).

    Both labels must occur.
    """
    positive = np.array(labels, dtype=bool)
    _, places, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # the mean rank of equal scores, from 1
    above, below = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


def kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    """Cohen's κ of two judges' labels of the same things: (p − c) / (1 − c), with p the share on which they agree and c
    the share on which they would by chance (Cohen 1960). None where both say one and the same of everything: then c
    is 1.

    Args:
        pairs: the two labels of each thing; not empty.
    """
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(first[label] * second[label] for label in first) / len(pairs) ** 2
    agreed = sum(one == other for one, other in pairs) / len(pairs)
    return None if chance == 1 else (agreed - chance) / (1 - chance)
