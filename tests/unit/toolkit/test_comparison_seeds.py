"""Several seeds of a defence: one row, means and spread, one of the defences that Holm counts."""

from types import SimpleNamespace

import pytest

from safetykit.toolkit.comparison.analysis import Answered, families
from safetykit.toolkit.comparison.entries import Budgets
from safetykit.toolkit.comparison.results import ArmInfo
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import Decision, Evaluation, tabulate
from safetykit.toolkit.evaluation.result import Judged

COUNT = 60
RECORDS = [
    Record(id=f"{label}{at}", prompt="?", label=label, split="test", carrier="text")
    for label in ("harmful", "harmless")
    for at in range(COUNT)
]
# Of sixty attacks, which succeed; of sixty harmless requests, how many are refused.
ARMS = {
    "none": (range(60), 0),
    "drawn-seed0": (range(30), 0),
    "drawn-seed1": (range(20), 3),
    "drawn-seed2": (range(10), 6),
    "same-seed0": (range(50), 0),
    "same-seed1": (range(50), 0),
    "fixed": (range(50), 0),
}


def answered(attacks, refused):
    outcomes = {
        one.id: ("answered" if at % COUNT in attacks else "refused")
        if one.label == "harmful"
        else ("refused" if at % COUNT < refused else "answered")
        for at, one in enumerate(RECORDS)
    }
    decisions = [
        Decision(
            id=one.id, carrier="text", label=one.label, tags=(), text="", outcome=outcomes[one.id], scores={}, calls=1
        )
        for one in RECORDS
    ]
    rows = tabulate(decisions)
    judged = (Judged(judge="expected", rows=rows, outcomes=outcomes),)
    found = Evaluation(model="m", split="test", max_new_tokens=1, rows=rows, decisions=decisions, judged=judged)
    return [Answered("b", found, RECORDS)]


@pytest.fixture(scope="module")
def family():
    arms = []
    for name, given in ARMS.items():
        row, _, seed = name.partition("-seed")
        info = ArmInfo(family="m", model="m", path="m", name=name, row=row, seed=int(seed) if seed else None)
        arms.append((info, answered(*given)))
    (found,) = families(arms, ["expected"], Budgets(over_refusal=0.05, utility_loss=1))
    return found


@pytest.fixture(scope="module")
def rows(family):
    tests = {one.arm: one for one in family.tests() if one.metric == "attack_success" and one.group == "all"}
    summaries = {one.arm: one for one in family.summaries()}
    return SimpleNamespace(tests=tests, summaries=summaries)


def test_a_defence_is_one_row_of_means(rows):
    assert list(rows.summaries) == ["none", "drawn", "same", "fixed"]
    one = rows.summaries["drawn"]
    assert one.seeds == 3 and one.rates["attack_success"].rate == pytest.approx(20 / 60)
    assert one.rates["attack_success"].n == COUNT  # three answers to a record are no three records
    spread = one.spread["attack_success"]
    assert (spread.low, spread.high) == (pytest.approx(10 / 60), pytest.approx(0.5))
    assert spread.deviation == pytest.approx(1 / 6)
    assert rows.summaries["fixed"].seeds == 0 and not rows.summaries["fixed"].spread


def test_the_budget_is_that_of_the_mean(rows):
    assert rows.summaries["drawn"].rates["over_refusal"].rate == pytest.approx(0.05)
    assert rows.summaries["drawn"].within_budget  # seed 2 alone exceeds it


def test_a_test_is_of_the_mean_too(rows):
    test = rows.tests["drawn"]
    assert (test.before, test.after) == (1.0, pytest.approx(20 / 60))
    assert (test.lost, test.gained) == (pytest.approx(40), 0)
    assert test.low <= test.difference <= test.high


def test_seeds_that_say_the_same_are_tested_as_one_fit_is(rows):
    same, fixed = rows.tests["same"], rows.tests["fixed"]
    assert same.p == fixed.p and (same.low, same.high) == (fixed.low, fixed.high)


def test_holm_counts_defences_and_not_seeds(rows):
    """Three defences: the smallest p is tripled, and two equal ones are doubled."""
    assert rows.tests["drawn"].adjusted == pytest.approx(3 * rows.tests["drawn"].p)
    assert rows.tests["fixed"].adjusted == pytest.approx(2 * rows.tests["fixed"].p)


def test_tables_are_of_every_seed_and_of_the_row(family):
    figures = {one.arm: one.rows[0].metrics["attack_success"].count for one in family.figures()}
    assert figures["drawn-seed0"] == 30 and figures["drawn-seed2"] == 10 and figures["drawn"] == 20
    assert "fixed" in figures and list(figures).count("fixed") == 1
