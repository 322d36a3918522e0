"""What TGA says that it costs, and its budget."""

import pytest

from safetykit.adapters import UsageError
from safetykit.adapters.tga.cost import cost, within
from safetykit.adapters.tga.settings import TGA

COUNTS = {"captions": 100, "turns": 250}


def test_a_cost_counts_rows_over_pictures_and_twins_only_where_a_term_needs_them():
    found = cost(TGA(steps=50, batch_size=8, accumulate=2), COUNTS)
    assert (found.forward, found.backward) == (3 + 2 * 8, 8)
    assert str(found) == "19.0 forward and 8.0 backward passes over 100 pictures"
    alone = cost(TGA(steps=50, batch_size=8, accumulate=2, request_weight=0, opening_weight=0), COUNTS)
    assert (alone.forward, alone.backward) == (3 + 8, 8)
    assert cost(TGA(variant="closed-form"), COUNTS).backward == 0


def test_a_budget_takes_steps_away_and_is_never_exceeded():
    for budget in (4, 10, 27.5):
        settings = within(TGA(batch_size=8, budget=budget), COUNTS)
        found = cost(settings, COUNTS)
        assert settings.steps < 200 and found.forward + found.backward <= budget
        more = cost(settings.but(steps=settings.steps + 1), COUNTS)
        assert more.forward + more.backward > budget
    assert within(TGA(steps=3, budget=50), COUNTS).steps == 3
    assert within(TGA(), COUNTS) == TGA()


def test_a_budget_of_less_than_a_step_is_refused_with_the_least_that_works():
    with pytest.raises(UsageError, match="Pass budget 3.3 or more") as refused:
        within(TGA(batch_size=8, budget=3), COUNTS)
    assert "takes 3.3 passes" in str(refused.value)
    assert within(TGA(batch_size=8, budget=3.3), COUNTS).steps == 1
