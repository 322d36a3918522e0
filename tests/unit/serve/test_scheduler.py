"""The scheduler with a model that only counts: order, fairness, cancelling, overflow, draining, rows that fail."""

import threading
import time

import pytest

from safetykit.serve.rows import Broken, Busy, Draining, Row, TimedOut
from safetykit.serve.scheduler import Scheduler


class Counting:
    """A state is a list of [row, tokens so far]; each step adds the token that was fed."""

    def __init__(self):
        self.gate, self.turn = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.steps, self.unheard, self.begun, self.used = [], [], [], []

    def use(self, variant):
        if variant == "broken":
            raise RuntimeError("no such variant")
        self.used.append(variant)

    def begin(self, rows):
        self.gate.wait(10)
        for row in rows:
            if row.name.startswith("unreadable"):
                raise ValueError(row.name)
        self.begun.append([row.name for row in rows])
        return [(row.name, ()) for row in rows]

    def step(self, state, tokens):
        self.gate.wait(10)
        for name, before in state:
            if name.startswith("breaks") and len(before) == 1:
                raise ValueError(name)
        self.steps.append([name for (name, _), token in zip(state, tokens, strict=True) if token is not None])
        self.unheard.append(sum(token is None for token in tokens))
        return [(name, (*before, token)) for (name, before), token in zip(state, tokens, strict=True)]

    def join(self, parts):
        return [state[at] for state, places in parts for at in places]


class Word(Row):
    """Answers its name's letters, one a token, and checks that the state is its own."""

    def __init__(self, name, tokens=3, client=None, variant=None, deadline=None, kind=None):
        self.kind = kind
        self.name, self.left = name, list(range(tokens))
        self.client, self.variant, self.deadline = client, variant, deadline
        self.seen, self.error, self.done = [], None, threading.Event()

    def advance(self, state, at):
        name, before = state[at]
        assert name == self.name and list(before) == self.seen, "another row's state"
        if self.name == "throws":
            raise KeyError("mine")
        if not self.left:
            self.done.set()
            return None
        self.seen.append((self.name, self.left.pop(0)))
        return self.seen[-1]

    def failed(self, error):
        self.error = error
        self.done.set()


@pytest.fixture
def engine():
    return Counting()


@pytest.fixture
def scheduled(engine):
    made = []

    def make(max_batch=4, max_queue=16, **options):
        made.append(Scheduler(engine, max_batch=max_batch, max_queue=max_queue, **options))
        return made[-1]

    yield make
    engine.gate.set()
    for one in made:
        one.close()


def finished(*rows):
    for row in rows:
        assert row.done.wait(10), row.name


def held(engine, scheduler, row=None):
    """The scheduler at a gate, in the prompt of a row."""
    engine.gate.clear()
    row = row or Word("first", 1)
    scheduler.submit([row])
    while scheduler.waiting:
        time.sleep(0.001)
    return row


def test_rows_decode_together_and_each_gets_its_own(engine, scheduled):
    scheduler = scheduled()
    rows = [Word(f"w{at}", tokens=2 + at) for at in range(9)]
    scheduler.submit(rows)
    finished(*rows)
    assert all(len(row.seen) == 2 + at and row.error is None for at, row in enumerate(rows))
    assert max(map(len, engine.steps)) == 4
    assert any("w0" not in step and {"w3", "w4"} <= set(step) for step in engine.steps), (
        "one joined while others went on"
    )


def test_clients_take_turns(engine, scheduled):
    scheduler = scheduled(max_batch=1)
    first = held(engine, scheduler)
    many = [Word(f"a{at}", 1, client="a") for at in range(4)]
    few = [Word(f"b{at}", 1, client="b") for at in range(2)]
    scheduler.submit(many)
    scheduler.submit(few)
    engine.gate.set()
    finished(first, *many, *few)
    assert [one for (one,) in engine.begun] == ["first", "a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_full_queue_refuses_all_of_a_request(engine, scheduled):
    scheduler = scheduled(max_batch=1, max_queue=2)
    first = held(engine, scheduler)
    waiting = Word("waits")
    scheduler.submit([waiting])
    with pytest.raises(Busy, match="1 requests are waiting") as caught:
        scheduler.submit([Word("x"), Word("y")])
    assert 1 <= caught.value.retry_after <= 60 and scheduler.waiting == 1
    engine.gate.set()
    finished(first, waiting)


def test_cancelled_rows_leave_and_others_stay(engine, scheduled):
    scheduler = scheduled(max_batch=2)
    endless, other, waits = Word("endless", 10**6), Word("other", 50), Word("waits", 2)
    scheduler.submit([endless, other, waits])
    while len(endless.seen) < 3:
        time.sleep(0.001)
    endless.cancel()
    finished(other, waits)
    assert endless.error is None and len(endless.seen) < 10**6 and len(other.seen) == 50
    while scheduler.running:
        time.sleep(0.001)


def test_cancelled_while_waiting_is_never_read(engine, scheduled):
    scheduler = scheduled(max_batch=1)
    first, gone, last = held(engine, scheduler), Word("gone"), Word("last")
    scheduler.submit([gone, last])
    gone.cancel()
    engine.gate.set()
    finished(first, last)
    assert ["gone"] not in engine.begun


def test_a_row_out_of_time_fails_alone(engine, scheduled):
    now = [0.0]
    scheduler = scheduled(clock=lambda: now[0])
    late, other = Word("late", 10**6, deadline=5.0), Word("other", 60)
    scheduler.submit([late, other])
    while len(late.seen) < 2:
        time.sleep(0.001)
    now[0] = 6.0
    finished(late, other)
    assert isinstance(late.error, TimedOut) and other.error is None and len(other.seen) == 60


def test_a_failing_row_takes_nobody_along(engine, scheduled):
    scheduler = scheduled(max_batch=8)
    bad = [Word("unreadable"), Word("breaks"), Word("throws")]
    good = [Word("a"), Word("b", 5)]
    scheduler.submit([bad[0], good[0], bad[1], good[1], bad[2]])
    finished(*bad, *good)
    assert [type(row.error) for row in bad] == [ValueError, ValueError, KeyError]
    assert [row.error for row in good] == [None, None] and [len(row.seen) for row in good] == [3, 5]
    again = Word("again")
    scheduler.submit([again])
    finished(again)
    assert again.error is None


def test_an_engine_that_cannot_join_fails_those_rows_and_goes_on(engine, scheduled, monkeypatch):
    def broken(parts):
        raise MemoryError("no room")

    scheduler = scheduled()
    first = held(engine, scheduler, Word("first", 40))
    second = Word("second")
    scheduler.submit([second])
    monkeypatch.setattr(engine, "join", broken)
    engine.gate.set()
    finished(first, second)
    assert isinstance(second.error, MemoryError) and isinstance(first.error, MemoryError)
    monkeypatch.undo()
    again = Word("again")
    scheduler.submit([again])
    finished(again)
    assert again.error is None


def test_prompts_of_a_kind_are_read_together_and_all_rows_decode_together(engine, scheduled):
    scheduler = scheduled(max_batch=8)
    first = held(engine, scheduler)
    rows = [Word(f"{kind}{at}", 4, kind=kind) for at in range(2) for kind in "ab"]
    scheduler.submit(rows)
    engine.gate.set()
    finished(first, *rows)
    assert engine.begun[1:] == [["a0", "a1"], ["b0", "b1"]] and max(map(len, engine.steps)) == 4


def test_rows_leave_and_others_join_in_one_copy(engine, scheduled, monkeypatch):
    copied, join = [], engine.join

    def joined(parts):
        if [len(state) for state, _ in parts] != [len(places) for _, places in parts] or len(parts) > 1:
            copied.append([len(places) for _, places in parts])
        return join(parts)

    monkeypatch.setattr(engine, "join", joined)
    scheduler = scheduled(max_batch=2)
    first = held(engine, scheduler, Word("first", 3))
    rows = [Word("stays", 12), Word("next", 2)]
    scheduler.submit(rows)
    engine.gate.set()
    finished(first, *rows)
    assert copied == [[1, 1], [1, 1], [1]] or copied == [[1, 1], [1]], copied


def test_rows_that_are_complete_run_along_until_others_join_or_half_have_ended(engine, scheduled, monkeypatch):
    sizes, join = [], engine.join

    def joined(parts):
        found = join(parts)
        sizes.append((sum(len(state) for state, _ in parts), len(found)))
        return found

    monkeypatch.setattr(engine, "join", joined)
    scheduler = scheduled(max_batch=5, max_queue=16)
    first = held(engine, scheduler)
    rows = [Word(f"w{at}", tokens) for at, tokens in enumerate((2, 4, 6, 30, 30))]
    scheduler.submit(rows)
    engine.gate.set()
    finished(first, *rows)
    assert max(engine.unheard) == 2, "of five rows; a third that ends has the batch copied"
    assert (5, 2) in sizes and sizes.count((2, 2)) == 0 and len(sizes) <= 4, sizes
    assert all(len(row.seen) == len(set(row.seen)) for row in rows) and len(rows[4].seen) == 30


def test_what_a_turn_says_can_be_handed_on_at_once(engine, scheduled):
    said, handed = [], []

    class Loud(Word):
        def advance(self, state, at):
            found = super().advance(state, at)
            said.append(self.name)
            return found

        def failed(self, error):
            super().failed(error)
            said.append(error)

    def hand_on():
        handed.append(list(said))
        said.clear()

    scheduler = scheduled(turned=hand_on)
    rows = [Loud(name, 3) for name in "abcd"]
    held(engine, scheduler)
    scheduler.submit(rows)
    engine.gate.set()
    finished(*rows)
    scheduler.submit([late := Loud("throws")])
    finished(late)
    scheduler.close()
    told = [one for one in handed if one]
    assert [*"abcd"] in told and len(told) <= 6, "four rows' words are handed on together"
    assert not said and isinstance(told[-1][-1], KeyError)


def test_a_thread_that_fails_tells_everybody_and_accepts_nothing(engine, scheduled, monkeypatch):
    told = []
    scheduler = scheduled(max_batch=1, when_broken=told.append)
    first = held(engine, scheduler, Word("first", 40))
    waits = Word("waits")
    scheduler.submit([waits])

    def killed(state, tokens):
        raise SystemExit("killed")

    monkeypatch.setattr(engine, "step", killed)
    engine.gate.set()
    finished(first, waits)
    assert isinstance(first.error, Broken) and isinstance(waits.error, Broken)
    assert [type(one) for one in told] == [SystemExit] and not scheduler.ready and scheduler.waiting == 0
    with pytest.raises(Broken):
        scheduler.submit([Word("late")])
    assert scheduler.drain(1), "nothing is left to wait for"


def test_another_variant_waits_for_the_batch_to_end_and_is_not_overtaken(engine, scheduled):
    scheduler = scheduled()
    rows = [Word("a", 3, variant="on"), Word("b", 3, variant="other"), Word("c", 3, variant="on")]
    broken = Word("d", variant="broken")
    scheduler.submit([*rows, broken])
    finished(*rows, broken)
    assert engine.begun == [["a"], ["b"], ["c"]] and engine.used == ["on", "other", "on"]
    assert isinstance(broken.error, RuntimeError)


def test_draining_answers_what_was_accepted(engine, scheduled):
    scheduler = scheduled(max_batch=1)
    first, waits = held(engine, scheduler), Word("waits")
    scheduler.submit([waits])
    assert not scheduler.drain(0.01) and not scheduler.ready
    with pytest.raises(Draining):
        scheduler.submit([Word("late")])
    engine.gate.set()
    assert scheduler.drain(10)
    assert first.done.is_set() and waits.done.is_set() and waits.error is None


def test_closing_fails_what_is_left(engine, scheduled):
    scheduler = scheduled(max_batch=1)
    endless, waits = Word("endless", 10**6), Word("waits")
    scheduler.submit([endless, waits])
    while not endless.seen:
        time.sleep(0.001)
    scheduler.close()
    assert isinstance(endless.error, Draining) and isinstance(waits.error, Draining)
