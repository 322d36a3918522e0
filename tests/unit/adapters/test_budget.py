"""Budgets hold on new groups at least as often as promised, where thresholds set on records do not."""

from dataclasses import dataclass

import numpy as np
import pytest

from safetykit.adapters import UsageError
from safetykit.adapters.budget import Budget, Groups, groups_of
from safetykit.adapters.statistics.budget import (
    Choice,
    Losses,
    holds,
    needed,
    parts_of,
    require_enough,
    strongest_within,
    threshold_within,
)
from safetykit.adapters.statistics.probe import threshold_at

DRAWS = 300


@dataclass(frozen=True)
class Example:
    id: str
    group: str = ""
    category: str = ""
    pair: str | None = None
    label: str = "harmless"
    split: str = "calibration"


def grouped(count: int, each: int = 1) -> Groups:
    records = tuple(Example(f"{group}-{at}", f"g{group}") for group in range(count) for at in range(each))
    return Groups(records, tuple(record.group for record in records))


# The test of one choice


def shares(kind: str, risk: float, random: np.random.Generator, count: int) -> np.ndarray:
    """Mean losses of groups, ``risk`` on average: whole groups are lost, or parts of them, or they may gain as well."""
    if kind == "whole":
        return (random.random(count) < risk).astype(float)
    if kind == "parts":
        return random.binomial(5, random.beta(risk / 2, (1 - risk) / 2, count)) / 5
    return random.binomial(4, risk + 0.1, count) / 4 - random.binomial(4, 0.1, count) / 4


@pytest.mark.parametrize("kind", ["whole", "parts", "gains"])
@pytest.mark.parametrize(("limit", "count"), [(0.05, 70), (0.1, 60), (0.1, 200)])
def test_a_risk_above_the_budget_passes_no_more_often_than_allowed(kind, limit, count):
    random = np.random.default_rng(7)
    for confidence in (0.9, 0.7):
        passed = [holds(shares(kind, limit, random, count), limit, confidence) for _ in range(2 * DRAWS)]
        allowed = 1 - confidence
        assert np.mean(passed) <= allowed + 2 * np.sqrt(allowed * confidence / len(passed))


def test_a_risk_well_below_the_budget_passes():
    random = np.random.default_rng(7)
    for kind in ("whole", "parts", "gains"):
        assert np.mean([holds(shares(kind, 0.02, random, 200), 0.1, 0.9) for _ in range(50)]) > 0.9


def test_groups_of_one_record_are_counted_exactly():
    """Of 100, at a risk of 10 %, at most 5 are lost with chance 0.058, and at most 6 with 0.117."""
    for lost, wanted in ((5, True), (6, False)):
        losses = np.repeat([1.0, 0.0], [lost, 100 - lost])
        assert Losses(grouped(100)).holds(losses, 0.1, 0.9) is wanted


def test_a_budget_of_next_to_nothing_takes_very_many_groups():
    assert needed(1e-9, 0.9) > 2e9


@pytest.mark.parametrize(("limit", "confidence", "count"), [(0.01, 0.9, 230), (0.05, 0.9, 45), (0.1, 0.95, 29)])
def test_how_many_groups_a_budget_takes_is_known(limit, confidence, count):
    assert needed(limit, confidence, alone=True) == count
    least = needed(limit, confidence)
    assert count <= least <= 1.2 * count + 5
    assert holds(np.zeros(least), limit, confidence) and not holds(np.zeros(least - 1), limit, confidence)


def test_the_bound_is_the_smallest_budget_that_would_have_passed():
    losses, groups = np.zeros(400), grouped(200, 2)
    losses[:6] = 1
    kept = Losses(groups).kept("over-refusal", losses, 0.2, 0.9)
    means = Losses(groups).means(losses)
    assert kept.observed == pytest.approx(6 / 400)
    assert kept.observed < kept.bound < 0.06
    assert holds(means, kept.bound + 1e-6, 0.9) and not holds(means, kept.bound - 1e-4, 0.9)


def test_the_mean_weighs_each_group_the_same():
    records = tuple(Example(str(at), group) for at, group in enumerate("aaab"))
    means = Losses(Groups(records, tuple("aaab"))).means(np.array([1.0, 1.0, 1.0, 0.0]))
    assert sorted(means) == [0.0, 1.0]


# Thresholds


def planted(random: np.random.Generator, count: int, each: int = 6) -> np.ndarray:
    """Scores of harmless records that mostly depend on their group: one in twelve things looks like harm."""
    group = random.normal(size=count) + 4 * (random.random(count) < 1 / 12)
    return (group[:, None] + 0.3 * random.normal(size=(count, each))).ravel()


def test_thresholds_on_records_break_the_budget_on_new_groups_and_those_on_groups_keep_it():
    limit, confidence, random = 0.1, 0.9, np.random.default_rng(11)
    everything = planted(random, 20000)
    groups = grouped(60, 6)
    budget = Budget(max_over_refusal=limit, confidence=confidence)
    broken = {"records": 0, "groups": 0}
    for _ in range(DRAWS):
        scores = planted(random, 60)
        on_records = threshold_at(scores, np.zeros(len(scores), bool), limit)
        risks = {record.id: score for record, score in zip(groups.records, scores.tolist(), strict=True)}
        on_groups, promise = threshold_within(budget, groups, risks)
        broken["records"] += (everything > on_records).mean() > limit
        broken["groups"] += (everything > on_groups).mean() > limit
        (kept,) = promise.kept
        assert kept.observed <= kept.bound <= limit
    assert broken["records"] > 0.35 * DRAWS  # a share of calibration records says nothing of how sure it is
    expected = (1 - confidence) * DRAWS
    assert broken["groups"] <= expected + 2 * np.sqrt(expected)  # as often as promised, but for the draws' chance


def test_counting_records_as_groups_breaks_the_promise_where_they_depend_on_each_other():
    limit, confidence, random = 0.1, 0.9, np.random.default_rng(11)
    everything, groups = planted(random, 20000), grouped(60, 6)
    alone = Groups(groups.records, tuple(record.id for record in groups.records))
    budget = Budget(max_over_refusal=limit, confidence=confidence, budget_by="record")
    broken = 0
    for _ in range(DRAWS // 3):
        risks = {record.id: score for record, score in zip(groups.records, planted(random, 60).tolist(), strict=True)}
        broken += (everything > threshold_within(budget, alone, risks)[0]).mean() > limit
    assert broken > 1.5 * (1 - confidence) * DRAWS / 3


def test_the_threshold_lies_between_two_risks_and_refuses_as_many_as_it_may():
    groups = grouped(100)
    risks = {record.id: float(at) for at, record in enumerate(groups.records)}
    threshold, promise = threshold_within(Budget(max_over_refusal=0.1), groups, {**risks, "harmful": 94.4})
    assert threshold == pytest.approx(94.2)  # of a hundred, five may lie above
    assert (promise.groups, promise.records, promise.unit, promise.tested) == (100, 100, "group", 7)
    assert promise.table()["kept"][0]["what"] == "over-refusal"


def test_of_two_budgets_the_smaller_sets_a_threshold():
    groups = grouped(100)
    risks = {record.id: float(at) for at, record in enumerate(groups.records)}
    threshold, promise = threshold_within(Budget(max_over_refusal=0.5, max_utility_loss=0.1), groups, risks)
    assert threshold == pytest.approx(94.5)
    assert [one.budget for one in promise.kept] == [0.5, 0.1]
    assert promise.kept[0].bound == pytest.approx(promise.kept[1].bound, abs=1e-6)


def test_too_few_groups_choose_nothing_and_say_how_many_it_takes():
    groups = grouped(20, 3)
    least = needed(0.01, 0.9)
    with pytest.raises(UsageError, match=f"at least {least} calibration groups at confidence 0.9, by group; 20 are"):
        threshold_within(Budget(max_over_refusal=0.01), groups, dict.fromkeys([], 0.0))
    with pytest.raises(UsageError, match=rf"\({3 * least // 2} in all\)|in all"):
        require_enough(Budget(max_over_refusal=0.01), groups, whole=30)


# Families of settings


def family(risks, random, groups):
    made = []

    def choice(risk):
        made.append(risk)
        lost = (random.random(groups.count) < risk).repeat(len(groups.records) // groups.count).astype(float)
        return Choice(f"risk {risk}", lost, lost)

    return [lambda risk=risk: choice(risk) for risk in risks], made


def test_the_strongest_of_a_family_that_keeps_both_budgets_is_chosen_as_often_as_promised():
    groups, random, wrong = grouped(80, 3), np.random.default_rng(5), 0
    for _ in range(DRAWS // 3):
        makers, made = family([0.0, 0.02, 0.12, 0.5], random, groups)
        at, promise = strongest_within(Budget(max_over_refusal=0.1, max_utility_loss=0.11), groups, makers)
        wrong += at >= 2
        assert promise.tested == len(made) == min(at + 2, 4)  # what comes after the first that fails is not made
        assert promise.chosen == f"risk {[0.0, 0.02, 0.12, 0.5][at]}"
    assert wrong <= 0.1 * DRAWS / 3


def test_a_family_whose_weakest_member_breaks_a_budget_gives_none():
    groups = grouped(80)
    lost, none = np.ones(80), np.zeros(80)
    only = Budget(max_over_refusal=0.1)
    assert strongest_within(only, groups, [lambda: Choice("", lost, none)]) is None
    assert strongest_within(only, groups, [lambda: Choice("", none, lost)]) is not None
    assert strongest_within(Budget(max_utility_loss=0.1), groups, [lambda: Choice("", none, lost)]) is None


def test_answers_that_are_gained_make_up_for_lost_ones():
    groups = grouped(200)
    lost = np.zeros(200)
    lost[:30], lost[30:70] = 1, -1
    assert strongest_within(Budget(max_utility_loss=0.1), groups, [lambda: Choice("", lost, lost)]) is not None


# Groups


def test_a_record_has_the_group_of_its_pair_and_what_the_fit_has_seen_does_not_count():
    records = [
        Example("a", "knife"),
        Example("b", pair="c"),
        Example("c", "fork", label="harmful"),
        Example("d", "spoon"),
        Example("e", "spoon", split="fit", label="harmful"),
    ]
    found = groups_of(records, "group")
    assert (found.names, found.left_out, found.count) == (("knife", "fork"), ("spoon",), 2)
    assert [record.id for record in found.records] == ["a", "b"]
    assert groups_of(records, "record").names == ("a", "b", "d")


@pytest.mark.parametrize(("by", "others"), [("group", "category or budget_by record"), ("category", "group or")])
def test_records_that_do_not_say_what_they_are_about_are_refused(by, others):
    with pytest.raises(UsageError, match=rf"1 of 1 harmless records of split calibration name no {by}.*{others}"):
        groups_of([Example("a")], by)


def test_a_fit_that_has_seen_every_category_leaves_none():
    records = [Example("a", category="tools"), Example("b", category="tools", split="fit")]
    with pytest.raises(UsageError, match="The fit has seen every category of split calibration"):
        groups_of(records, "category")


def test_what_settings_are_looked_for_on_and_what_tests_them_share_no_group():
    searched, tested = parts_of(grouped(30, 2), 1 / 3)
    assert (len(searched), len(tested), searched & tested) == (10, 20, frozenset())
    assert parts_of(grouped(30, 2), 1 / 3) == (searched, tested)


# The setting


def test_a_budget_says_what_it_cannot_be():
    with pytest.raises(UsageError, match="max_over_refusal cannot be 0"):
        Budget(max_over_refusal=0)
    with pytest.raises(UsageError, match="confidence does nothing with max_over_refusal left out"):
        Budget(confidence=0.8)
    with pytest.raises(UsageError, match="budget_by cannot be 'thing'. It is group, category or record."):
        Budget(max_over_refusal=0.1, budget_by="thing")
    assert not Budget().given and Budget(max_utility_loss=0.1).given
