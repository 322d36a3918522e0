"""Which process this is, of how many, and how they tell each other things. No torch is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class World(Protocol):
    """The processes of a job.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def gather(self, part: Any) -> Future[list[Any]]:
        """The parts of all, by rank. All processes ask for the same in the same order; none waits before the result.

        The result raises :class:`~safetykit.adapters.errors.ProcessLost` if one of them is gone.
        """
        ...


class Alone:
    """A single process, or one of several that works on something of its own; ``rank`` says which."""

    size = 1

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def gather(self, part: Any) -> Future[list[Any]]:
        found: Future[list[Any]] = Future()
        found.set_result([part])
        return found


_ALONE: World = Alone()
# Threads begin without it, and so alone: what they share with other processes would not be in order.
_WORLD: ContextVar[World] = ContextVar("world", default=_ALONE)


def world() -> World:
    """The processes that work is dealt out to: one, unless a launcher started several."""
    return _WORLD.get()


@contextmanager
def working_in(found: World) -> Iterator[None]:
    """Deal out to these processes until the block ends."""
    before = _WORLD.set(found)
    try:
        yield
    finally:
        _WORLD.reset(before)


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return world().rank == 0


def from_first(value: T) -> T:
    """What the first process has; others may give anything."""
    here = world()
    first: T = here.gather(value if here.rank == 0 or here.size == 1 else None).result()[0]
    return first
