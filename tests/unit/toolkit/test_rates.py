"""Intervals and AUROC are those of SciPy and scikit-learn, which the runtime does without."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from safetykit.toolkit.evaluation.rates import auroc, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 40), (351, 1000), (1, 7)])
def test_intervals_are_wilsons(count, n):
    theirs = binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert wilson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-15)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_ties_count_half(decimals):
    random = np.random.default_rng(decimals)
    labels = random.random(300) < 0.3
    scores = np.round(random.normal(size=300) + labels, decimals)
    assert auroc(labels.tolist(), scores.tolist()) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_perfect_and_constant_scores():
    assert auroc([True, False], [1.0, 0.0]) == 1.0
    assert auroc([True, False], [0.0, 1.0]) == 0.0
    assert auroc([True, False, True], [0.5, 0.5, 0.5]) == 0.5
