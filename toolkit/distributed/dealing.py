"""Dealing out: item by item to the processes in turn, results to all of them in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, TypeVar

from ...adapters.errors import SafetykitError
from .world import ALONE, World, working_in, world

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # rounds that a process may be ahead of the slowest, so that chunks of unlike cost even out


def dealt(items: Iterable[T], compute: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with what ``compute`` makes of it, in order, on every process alike.

    Only one process computes an item, alone: what it deals out in turn stays with it. A result must say the same
    whoever computed it, and be small: it is sent to all others.

    Raises:
        SafetykitError: what ``compute`` raised, on all processes.
        ProcessLost: one of them is gone.
    """
    here = world()
    if here.size == 1:
        for item in items:
            yield item, compute(item)
        return
    rest, waiting = iter(items), deque[tuple[list[T], Future[list[Any]]]]()
    failed, more = False, True
    while more or waiting:
        if more and len(waiting) < _AHEAD:
            row = list(islice(rest, here.size))
            more = len(row) == here.size
            if row:
                part = _Part(failed=failed) if failed or here.rank >= len(row) else _computed(row[here.rank], compute)
                failed = failed or part.failed
                waiting.append((row, here.gather(part)))
            continue
        row, found = waiting.popleft()
        parts = found.result()
        for item, part in zip(row, parts, strict=False):
            if part.error is not None:
                raise part.error
            yield item, part.value


class _Part:
    """What one process has to say of its item in a round."""

    def __init__(self, value: Any = None, error: BaseException | None = None, failed: bool = False) -> None:
        self.value, self.error, self.failed = value, error, failed


def _computed(item: T, compute: Callable[[T], Any]) -> _Part:
    """The result, or the failure: it is raised where all processes see it, and so in the same place."""
    try:
        with working_in(ALONE):
            return _Part(compute(item))
    except SafetykitError as error:
        return _Part(error=error, failed=True)


__all__ = ["World", "dealt"]
