"""The soak sees what it is there to see."""

import ctypes
from types import SimpleNamespace

import pytest

from safetykit.adapters.errors import UsageError
from safetykit.bench.clients import Client, Question
from safetykit.bench.memory_in_use import Memory, in_use, memories, slope
from safetykit.bench.soak import soak, steps
from safetykit.toolkit.model.requests import Generation


def question(word, canary=True):
    return Question(
        word,
        {"prompt": f"ask {len(word)}"},
        Generation(f"this is a {word}", (len(word),), {"risk": 0.0}),
        word if canary else None,
    )


ASKED = [question(word) for word in ("cat", "club", "piano")]
BAD = Question("bad", {"prompt": "refuse"}, None)


def right(requests):
    """What each gets alone."""
    if any(request.prompt == "refuse" for request in requests):
        raise UsageError("Row 0 is refused.", "Leave it out.")
    return [next(one.answer for one in ASKED if one.given["prompt"] == request.prompt) for request in requests]


def tally_of(answer, asked=ASKED, batches=20):
    client = Client(SimpleNamespace(generate=lambda requests, tokens: answer(requests)), asked, 4, seed=0)
    for _ in range(batches):
        client.batch()
    return client.counts.tally


def test_right_answers_are_no_failure():
    tally = tally_of(right)
    assert tally["answers"] > 20 and tally["leak"] == tally["another answer"] == 0


def test_an_answer_of_another_row_is_a_leak():
    tally = tally_of(lambda requests: right(requests)[1:] + right(requests)[:1])
    assert tally["leak"] > 0 and tally["another answer"] >= tally["leak"]


def test_an_error_that_says_what_another_row_holds_is_a_leak():
    def refuse(requests):
        raise UsageError("The prompt beside it speaks of a piano.", "Ask again.")

    tally = tally_of(refuse)
    assert tally["leak"] > 0 and tally["refused without reason"] == 20


def test_a_score_that_moves_is_seen():
    def moved(requests):
        return [Generation(one.text, one.token_ids, {"risk": 0.1}) for one in right(requests)]

    assert tally_of(moved)["another score"] > 20


def test_an_odd_request_is_refused_and_the_others_are_sent_again():
    tally = tally_of(right, [*ASKED, BAD])
    assert tally["refused batches"] > 0 and tally["answers"] > 20
    assert tally["refused without reason"] == tally["leak"] == 0


def test_an_answer_to_what_is_refused_alone_is_seen():
    assert tally_of(lambda requests: [ASKED[0].answer] * len(requests), [*ASKED, BAD])[
        "answered although refused alone"
    ]


def test_an_error_without_a_type_is_seen():
    assert tally_of(lambda requests: 1 / 0)["untyped"] == 20


def test_threads_count_together():
    found = soak(
        SimpleNamespace(generate=lambda requests, tokens: right(requests)),
        ASKED,
        minutes=1,
        threads=3,
        rows=2,
        answers=50,
    )
    assert found["tally"]["answers"] >= 50 and found["memory"]


@pytest.mark.parametrize(("growth", "flat"), [(0.0, True), (3.0, False)])
def test_the_slope_of_memory_is_found_with_its_interval(growth, flat):
    noise = (0.3, -0.2, 0.1, -0.3, 0.2, -0.1)
    value, low, high = slope([(second, 900 + growth * second / 60 + noise[second % 6]) for second in range(1800)])[
        "slope"
    ]
    assert low <= 60 * growth + 1e-6 and high >= 60 * growth - 1e-6 and (low <= 0 <= high) == flat
    assert value == pytest.approx(60 * growth, abs=0.5)
    assert slope([(0, 900.0), (60, 901.0)])["slope"] is None


@pytest.mark.skipif(in_use() is None, reason="this C library does not say what is in use")
def test_what_malloc_gave_out_is_counted_until_it_is_given_back():
    library, (before, _) = ctypes.CDLL(None), in_use()
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [library.malloc(4096) for _ in range(1024)]
    during, _ = in_use()
    for piece in pieces:
        library.free(piece)
    assert during - before == pytest.approx(4, abs=0.5) and in_use()[0] - before == pytest.approx(0, abs=0.5)


def test_each_kind_of_memory_has_its_own_slope():
    looks = [Memory(60 * at, 500 + at, 200, 128) for at in range(9)]
    found = memories(looks)
    assert {name: one["slope"][0] for name, one in found.items()} == pytest.approx(
        {"resident": 60, "used": 0, "blocks": 0}
    )
    assert memories([one._replace(used=None, blocks=None) for one in looks]).keys() == {"resident"}


def test_growth_in_steps_is_told_by_the_minute():
    assert steps([7, 135, 135.2, 267, 267]) == "128 MiB (minute 1), 132 MiB (minute 3)" and steps([5, 5]) == "none"
