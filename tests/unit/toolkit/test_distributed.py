"""Dealing out: any number of processes gives what one gives, and a failure reaches them all."""

from collections import Counter

import pytest
from ranks import Ranks

from safetykit.adapters.artifact.output import claimed
from safetykit.adapters.errors import ProcessLost, UsageError
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.distributed import job
from safetykit.toolkit.distributed.dealing import dealt, own
from safetykit.toolkit.distributed.output import by_first
from safetykit.toolkit.distributed.world import from_first, is_first, world
from safetykit.toolkit.model.batching import BatchSize, fitting, own_share, streamed


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_each_item_is_computed_once_and_all_see_it_in_order(size, count):
    computed = Counter()

    def square(item):
        computed[item] += 1
        here = world()
        assert here.size == 1  # what it deals out in turn stays with it
        assert is_first() == (here.rank == 0) and from_first(item) == item  # and only one writes
        assert here.rank == item % size and list(own(range(3))) == [0, 1, 2]
        return item * item

    found = Ranks(size).run(lambda rank: list(dealt(range(count), square)))
    assert found == [[(item, item * item) for item in range(count)]] * size
    assert computed == Counter(range(count))


def test_a_failure_is_raised_everywhere_after_what_came_before_it():
    def some(item):
        if item in (5, 6):
            raise UsageError(f"{item} is bad.", "Leave it out.")
        return item

    def work(rank):
        seen = []
        with pytest.raises(UsageError, match="5 is bad. Leave it out."):
            for _, made in dealt(range(100), some):
                seen.append(made)
        return seen

    assert Ranks(3).run(work) == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("picklable", [True, False])
def test_a_bug_is_raised_everywhere_too(picklable):
    class Local(Exception):
        pass

    def some(item):
        raise (KeyError if picklable else Local)("a bug")

    first, second = Ranks(2).run(lambda rank: list(dealt(range(9), some)))
    assert type(first) is type(second) is (KeyError if picklable else RuntimeError)
    assert "a bug" in str(first)


def test_who_waits_for_one_that_is_gone_is_told():
    def work(rank):
        for item, _ in dealt(range(40), lambda item: item):
            if (rank, item) == (1, 7):
                raise MemoryError

    first, second = Ranks(2).run(work)
    assert isinstance(first, ProcessLost) and isinstance(second, MemoryError)


def test_two_streams_may_run_into_each_other():
    """The order in which parts are handed over is that of the program, which is the same for all."""

    def work(rank):
        found = []
        for item, made in dealt(range(9), lambda item: item + 1):
            found += [made, *(inner for _, inner in dealt(range(3), lambda inner, item=item: inner * item))]
        return found

    assert len({tuple(found) for found in Ranks(2).run(work)}) == 1


@pytest.mark.parametrize("asked", [None, 1, 5, 8, 32, 50])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_batches_hold_the_same_for_any_number_of_processes(asked, rows):
    items = [tuple(range(at, at + rows)) for at in range(0, 100 * rows, rows)]

    def batches(stream):
        return [(batch, made) for batch, made in stream]

    arguments = (items, BatchSize(asked), 32, list, len)
    alone = batches(fitting(*arguments))
    assert batches(streamed(*arguments)) == alone
    assert Ranks(3).run(lambda rank: batches(streamed(*arguments))) == [alone] * 3
    shares = Ranks(3).run(lambda rank: list(own_share(items, BatchSize(asked), 32, len)))
    assert sorted(item for share in shares for item in share) == items
    ran = Ranks(2).run(lambda rank: _run_here(arguments))
    assert ran == Ranks(2).run(lambda rank: list(own_share(items, BatchSize(asked), 32, len)))


def _run_here(arguments):
    """What this thread itself ran."""
    items, size, usual, _, rows = arguments
    ran = []
    list(streamed(items, size, usual, ran.extend, rows))
    return ran


def test_the_first_writes_the_journal_and_all_know_what_is_done(tmp_path):
    path = tmp_path / "some.jsonl"
    journal = Journal(path, {"work": 1})
    journal.add("a", 1)

    def work(rank):
        found = Journal(path if rank == 0 else tmp_path / "elsewhere" / "some.jsonl", {"work": 1})
        done = dict(found.done)
        found.add("b", 2)
        return done, found.done, is_first(), from_first(rank)

    assert Ranks(2).run(work) == [({"a": 1}, {"a": 1, "b": 2}, first, 0) for first in (True, False)]
    assert Journal(path, {"work": 1}).done == {"a": 1, "b": 2}
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def launched(monkeypatch):
    def as_rank(rank, size=2):
        told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    return as_rank


def test_a_world_size_alone_starts_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (job.launched(), job.local_rank()) == (1, 0)


def test_processes_take_devices_and_sessions_in_turn(launched, monkeypatch):
    import torch

    from safetykit.export.runtime import sessions
    from safetykit.toolkit.model import placement

    two = [(torch.device("cuda", at), 2**40) for at in range(2)]
    monkeypatch.setattr(placement, "accelerators", lambda: two)
    assert placement._device("auto", 1) == torch.device("cuda:0")
    launched(3, 4)
    assert placement._device("auto", 1) == placement._device("cuda", 1) == torch.device("cuda:1")
    assert placement._device("cuda:0", 1) == torch.device("cuda:0")
    assert sessions._placed("CUDAExecutionProvider") == ("CUDAExecutionProvider", {"device_id": 3})
    assert sessions._placed("CPUExecutionProvider") == "CPUExecutionProvider"


def test_a_model_is_not_spread_over_what_other_processes_need(launched, monkeypatch, tmp_path):
    import torch

    from safetykit.toolkit.model import placement
    from safetykit.toolkit.model.options import LoadOptions

    monkeypatch.setattr(placement, "accelerators", lambda: [(torch.device("cuda", 0), 2**40)])
    launched(1)
    with pytest.raises(UsageError, match="leaves none for the other 1 processes. .* one process with --device-map"):
        placement.Placement.of(LoadOptions(device_map="auto"), tmp_path)


def test_an_output_that_the_first_process_may_not_write_is_refused_by_all(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes").write_text("x")

    def work(out):
        with by_first(claimed(tmp_path / out)):
            return sorted(path.name for path in tmp_path.iterdir())

    def refused(rank):
        with pytest.raises(UsageError, match="taken already exists"):
            work("taken")

    assert Ranks(3).run(refused) == [None] * 3
    assert all(".new.writing" in found for found in Ranks(2).run(lambda rank: work("new"))[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
