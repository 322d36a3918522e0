"""How fast counted work goes and how long it will take, from planted times."""

import pytest

from safetykit.toolkit.commands import progress
from safetykit.toolkit.commands.progress import Work
from safetykit.toolkit.model.batching import counted


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_pace_and_time_left(clock):
    work = Work("fitting")
    assert (work.pace(), work.throughput()) == ("", None)
    clock.now += 10
    work.count(20, 100)
    assert work.pace() == "2/s, 40 s left"
    clock.now += 5  # nothing was told since
    assert work.pace() == "2/s, 35 s left"
    work.count(20, 10_000)
    assert work.pace() == "1.33/s, 2.1 h left"
    work.count(20, 1_000)
    assert work.pace() == "1.33/s, 12 min left"
    work.count(20, 100_000)
    assert work.pace() == "1.33/s, 20.8 h left"
    clock.now += 25
    work.count(100, 100)
    assert work.pace() == "2.5/s"


def test_throughput_is_of_all_counts_and_leaves_out_the_time_between(clock):
    work = Work("fitting")
    clock.now += 10
    work.count(20, 20)
    clock.now += 100  # solving
    work("fitting again")
    clock.now += 10
    work.count(10, 60)
    clock.now += 10
    work.count(60, 60)
    clock.now += 10
    work.count(10, 20)  # another stream in the same step
    clock.now += 10
    work.count(20, 20)
    assert work.throughput() == {"records": 100, "seconds": 50.0, "records_per_second": 2.0}


def test_rows_of_batches_are_told():
    heard = []
    batches = [([("a", "b")], 1), ([("c",), ("d", "e")], 2)]
    assert list(counted(iter(batches), 5, lambda *told: heard.append(told), rows=len)) == batches
    assert heard == [(2, 5), (5, 5)]
    assert list(counted(iter(batches), 5, None)) == batches


def test_what_is_counted_aside_is_shown_and_no_part_of_the_throughput(clock):
    work = Work("answering")
    clock.now += 10
    work.count(20, 20)
    work("judging")
    clock.now += 10
    work.aside(10, 20)
    assert work.pace() == "1/s, 10 s left"
    work("judging again")
    clock.now += 10
    work.aside(20, 20)
    assert work.throughput() == {"records": 20, "seconds": 10, "records_per_second": 2}
