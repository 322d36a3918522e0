"""Paired statistics on outcomes in which the truth was planted."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.comparison.frontier import front
from safetykit.toolkit.comparison.statistics import (
    ALPHA,
    bootstrap,
    carrier_effects,
    detectable,
    flipped,
    holm,
    mcnemar,
    paired,
)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 0), (6, 0), (10, 1), (3, 8), (40, 40), (300, 200)])
def test_mcnemar_is_the_sign_test_of_changes(lost, gained):
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)


def test_changes_are_counted_record_by_record():
    before = np.array([True] * 30 + [False] * 70)
    after = np.array([False] * 20 + [True] * 10 + [True] * 2 + [False] * 68)
    found = paired(before, after, range(100))
    assert (found.n, found.groups, found.lost, found.gained) == (100, 100, 20, 2)
    assert (found.before, found.after) == (0.3, 0.12)
    assert found.low < found.difference < found.high < 0
    assert found.p == pytest.approx(binomtest(2, 22).pvalue)


def test_intervals_hold_the_planted_difference_as_often_as_they_say():
    """Of 200 samples of 150 records with a true difference of −0.2, the interval holds it in about 95 %."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        draw = random.random(150)
        changes = np.where(draw < 0.25, -1.0, np.where(draw < 0.30, 1.0, 0.0))
        low, high = bootstrap(changes, range(150))
        held += low <= -0.2 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_intervals_know_that_records_of_a_group_go_together():
    """Ten records a group that all change alike are no more than one record: the interval is as wide as theirs."""
    random = np.random.default_rng(2)
    of_groups = -(random.random(40) < 0.4).astype(float)
    whole = bootstrap(np.repeat(of_groups, 10), np.repeat(np.arange(40), 10))
    assert whole == pytest.approx(bootstrap(of_groups, range(40)))
    naive = bootstrap(np.repeat(of_groups, 10), range(400))
    assert naive[1] - naive[0] < 0.5 * (whole[1] - whole[0])


def test_where_nothing_changes_the_interval_is_no_certainty():
    low, high = bootstrap(np.zeros(20), range(20))
    assert low == -high and high == pytest.approx(0.161, abs=1e-3)  # Wilson's for 0 of 20


def test_flips_of_single_records_are_mcnemars_test():
    changes = np.array([-1] * 12 + [1] * 3 + [0] * 40)
    assert flipped(changes) == pytest.approx(binomtest(3, 15).pvalue)
    assert flipped(np.zeros(9, int)) == 1


def test_flips_are_counted_exactly():
    """Against all 2¹² signs."""
    changes = np.array([3, 3, -1, 2, 2, 1, -2, 1, 3, 0, 1, 2])
    signs = np.array(list(product([-1, 1], repeat=len(changes))))
    expected = np.mean(np.abs(signs @ changes) >= abs(changes.sum()))
    assert flipped(changes) == pytest.approx(expected)


def test_groups_that_change_as_one_are_one_piece_of_evidence():
    """Six things, ten records each, that all change: p is that of six records."""
    before, after = np.ones(60), np.zeros(60)
    found = paired(before, after, np.repeat(np.arange(6), 10).tolist())
    assert found.p == pytest.approx(2 / 2**6) and found.lost == 60
    assert paired(before, after, range(60)).p < 1e-15


def test_seeds_of_a_defence_are_one():
    """Each of three seeds stops another third of thirty attacks, so that every record changes by a third."""
    after = np.full(30, 2 / 3)
    found = paired(np.ones(30), after, range(30), seeds=3)
    assert (found.before, found.lost, found.gained) == (1.0, pytest.approx(10), 0)
    assert found.after == pytest.approx(2 / 3)
    assert found.p == pytest.approx(2 / 2**30)
    assert (found.low, found.high) == (pytest.approx(-1 / 3), pytest.approx(-1 / 3))


def test_the_same_answer_of_every_seed_is_one_seed():
    before = np.array([1.0] * 30 + [0.0] * 20)
    after = np.array([0.0] * 9 + [1.0] * 21 + [1.0] * 2 + [0.0] * 18)
    assert paired(before, after, range(50), seeds=5) == paired(before, after, range(50))


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_rate_of_false_findings():
    """Of 2000 families of eight defences that do nothing, at most about 5 % find any."""
    random = np.random.default_rng(3)
    families = random.random((2000, 8))
    assert np.mean([min(holm(list(one))) < ALPHA for one in families]) < 0.065


@pytest.mark.parametrize(("n", "opposite"), [(60, 0.0), (150, 0.05), (400, 0.02)])
def test_the_smallest_difference_is_seen_four_times_out_of_five(n, opposite):
    """By simulation: the test rejects with the probability that it was computed for, and less for half of it."""
    found = detectable(n, opposite)
    random = np.random.default_rng(4)

    def seen(difference):
        draws = random.multinomial(n, [opposite, difference + opposite, 1 - difference - 2 * opposite], size=2000)
        return np.mean([mcnemar(lost, gained) < ALPHA for gained, lost, _ in draws])

    assert seen(found) == pytest.approx(0.8, abs=0.04)
    assert seen(found / 2) < 0.6


def test_in_too_few_records_no_difference_is_seen():
    assert detectable(5, 0.0) is None  # even five of five: p = 0.0625
    assert detectable(6, 0.0) is not None


def test_sharing_alpha_among_tests_needs_larger_differences():
    assert detectable(100, 0.0, ALPHA / 10) > detectable(100, 0.0)


def test_there_must_be_records():
    with pytest.raises(UsageError, match="no record"):
        paired(np.array([]), np.array([]), [])


def test_what_seeing_does_is_compared_within_the_same_intent():
    """Thirty requests that are refused in words and answered when seen; a text request of another intent counts not."""
    answered = {f"t{at}": False for at in range(30)} | {f"i{at}": at < 24 for at in range(30)} | {"other": True}
    intents = {f"{kind}{at}": f"thing {at}" for kind in "ti" for at in range(30)} | {"other": "alone"}
    carriers = {key: "text" if key[0] in "to" else "image" for key in answered}
    (effect,) = carrier_effects(answered, intents, carriers)
    found = effect.outcomes
    assert effect.carrier == "image"
    assert (found.n, found.before, found.after, found.gained, found.lost) == (30, 0.0, 0.8, 24, 0)
    assert found.p < 1e-6 and found.low > 0.6


def test_records_without_an_intent_are_not_paired():
    assert carrier_effects({"a": True, "b": False}, {}, {"a": "image", "b": "text"}) == []


def test_the_front_is_what_nobody_beats():
    points = [(0.4, 0.0, -0.9), (0.1, 0.02, -0.9), (0.1, 0.03, -0.9), (0.05, 0.2, -0.5), (0.4, 0.0, -0.9)]
    assert front(points) == [True, True, False, True, True]
