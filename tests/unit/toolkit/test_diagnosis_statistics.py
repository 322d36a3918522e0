"""What is worked out of measurements: intervals, distances, curves over layers, and the layers where they turn."""

import numpy as np
import pytest

from safetykit.toolkit.data.records import Record
from safetykit.toolkit.diagnosis.fusion import chance, first_near_maximum, readability
from safetykit.toolkit.diagnosis.intervals import (
    estimate_auroc,
    estimate_difference,
    estimate_mean,
    mean_intervals,
)
from safetykit.toolkit.diagnosis.lens import layers_of_rise
from safetykit.toolkit.diagnosis.separation import class_separation, mahalanobis, separation
from safetykit.toolkit.diagnosis.states import LayerStates


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """The percentile bootstrap of 40 values falls a little short of 95 %; far from it would be a mistake."""
    samples = np.random.default_rng(1).exponential(1.0, (400, 40)) - 1.0
    low, high = mean_intervals(samples, seed=0)
    covered = ((low <= 0) & (high >= 0)).mean()
    assert 0.88 <= covered <= 0.97
    pairs = np.random.default_rng(2).normal(0, 1, (200, 2, 30))
    differences = [estimate_difference(first + 2, second, seed=0) for first, second in pairs]
    assert 0.88 <= np.mean([item.low <= 2 <= item.high for item in differences]) <= 0.99


def test_an_auroc_is_that_of_its_definition_and_its_interval_holds_it():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive = np.arange(60) < 25
    scores = np.round(rng.normal(positive * 0.8, 1.0), 1)  # with ties
    estimate = estimate_auroc(scores, positive, seed=0)
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores))
    assert estimate.low < estimate.value < estimate.high < 1
    perfect = estimate_auroc(positive * 1.0, positive, seed=0)
    assert (perfect.low, perfect.value, perfect.high) == pytest.approx((1, 1, 1))


def test_an_estimate_is_clear_where_its_interval_leaves_out_zero():
    assert estimate_mean([1.0, 1.1, 0.9, 1.2], 0).clear
    assert not estimate_mean([1.0, -1.1, 0.9, -1.2], 0).clear


def test_distances_are_those_of_two_gaussians():
    rng = np.random.default_rng(0)
    positive = np.arange(4000) % 2 == 0
    scales = np.array([1.0, 2.0, 1.0])
    x = rng.normal(0, 1, (4000, 3)) * scales + positive[:, None] * np.array([0.0, 4.0, 0.0])
    assert mahalanobis(x, positive) == pytest.approx(2.0, rel=0.06)
    assert class_separation(x, positive) == pytest.approx(4.0 / 6.0, rel=0.06)  # (4/2)² between, 1 + 4 + 1 within
    assert class_separation(np.zeros((8, 2)), np.arange(8) < 4) == 0.0


def _made(states, records):
    return LayerStates(tuple(records), states, states)


def _records(count, *, image=False, harmful=lambda at: at % 2 == 0, category=lambda at: "x"):
    return [
        Record(
            id=f"{image}{at}",
            prompt="p",
            split="fit",
            label="harmful" if harmful(at) else "harmless",
            image=f"{at}.png" if image else None,
            category=category(at),
        )
        for at in range(count)
    ]


def test_separability_rises_where_the_class_was_planted_and_transfers_along_the_same_axis():
    rng = np.random.default_rng(0)
    text, pictures = _records(80), _records(80, image=True)
    states = rng.normal(0, 1, (160, 4, 16)).astype(np.float32)  # the input and three layers
    harmful = np.array([record.label == "harmful" for record in (*text, *pictures)])
    states[harmful, 2:, 0] += 6.0
    curves = {(curve.measure, curve.records): curve for curve in separation(_made(states, [*text, *pictures]), seed=0)}
    for name in (("probe AUROC", "text"), ("probe AUROC", "pictures"), ("transfer AUROC", "text to pictures")):
        values = curves[name].values
        assert 0.3 < values[0] < 0.7 and values[1] > 0.98 and values[2] > 0.98
    assert curves["silhouette", "text"].values[1] > curves["silhouette", "text"].values[0] + 0.1
    assert first_near_maximum(curves["probe AUROC", "text"].values) == 1


def test_pairs_never_stand_in_two_folds():
    """Both of a pair have the same state here: whoever has seen one must not be asked about the other."""
    rng = np.random.default_rng(0)
    records = []
    for at in range(60):
        other = f"{at ^ 1}"
        label = "harmful" if at % 2 == 0 else "harmless"
        records.append(Record(id=f"{at}", prompt="p", split="fit", label=label, pair=other))
    states = np.repeat(rng.normal(0, 1, (30, 2, 64)), 2, axis=0).astype(np.float32)
    (area,) = [curve for curve in separation(_made(states, records), 0) if curve.measure == "probe AUROC"]
    assert area.values[0] == pytest.approx(0.5, abs=0.02)


def test_too_few_records_of_a_class_give_no_curves():
    assert separation(_made(np.zeros((12, 2, 4), np.float32), _records(12)), 0) == []


def test_categories_are_read_where_they_were_planted():
    rng = np.random.default_rng(0)
    records = _records(90, image=True, category=lambda at: "abc"[at % 3])
    states = rng.normal(0, 1, (90, 4, 32)).astype(np.float32)
    for at in range(90):
        states[at, 3, at % 3] += 8.0
    last, behind = readability(_made(states, records), seed=0)
    assert last.values[2] > 0.95 and max(last.values[:2]) < 0.6
    assert chance(_made(states, records)) == pytest.approx(1 / 3)
    assert readability(_made(states, _records(90, image=True)), 0) == []  # one category tells nothing
    assert behind.records == "text behind the picture"


def test_the_first_layer_near_the_maximum_is_counted_from_its_start():
    values = [0.5, 0.97, 0.99, 0.99, 0.6]
    assert first_near_maximum(values) == 2  # 0.97 is more than 2 % below 0.99
    assert first_near_maximum([0.5, 0.98, 0.99]) == 1
    assert first_near_maximum(values, start=4) == 4
    assert first_near_maximum(values, start=5) is None


def test_the_layers_of_rise_are_the_shortest_range_with_most_of_it():
    assert layers_of_rise([0.0, 5.0, 4.0, 0.5, -3.0]) == (1, 2)
    assert layers_of_rise([1.0, 0.0, 0.0, 1.0]) == (0, 1, 2, 3)
    assert layers_of_rise([0.1, 9.0, 0.1]) == (1,)
    assert layers_of_rise([-1.0, -2.0]) == ()
