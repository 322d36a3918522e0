"""Dealing out: item by item to the processes in turn, results to all of them in the order of the items."""

from __future__ import annotations

import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from .world import Alone, working_in, world

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # rounds that a process may be ahead of the slowest, so that chunks of unlike cost even out


def dealt(items: Iterable[T], compute: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with what ``compute`` makes of it, in order, on every process alike.

    Only one process computes an item, alone: what it deals out in turn stays with it. A result must say the same
    whoever computed it, and be small: it is sent to all others.

    Raises:
        Exception: what ``compute`` raised, on all processes.
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
                part = _Part() if failed or here.rank >= len(row) else _computed(row[here.rank], compute)
                failed = failed or part.error is not None
                waiting.append((row, here.gather(part)))
            continue
        row, found = waiting.popleft()
        for item, part in zip(row, found.result(), strict=False):
            if part.error is not None:
                raise part.error
            yield item, part.value


def own(items: Iterable[T]) -> Iterator[T]:
    """Those that this process computes, if :func:`dealt` gets the same."""
    here = world()
    return islice(items, here.rank % here.size, None, here.size)


@dataclass(frozen=True)
class _Part:
    """What one process has to say of its item in a round."""

    value: Any = None
    error: Exception | None = None


def _computed(item: T, compute: Callable[[T], Any]) -> _Part:
    """The result, or the failure: it is raised where all processes see it, and so in the same place."""
    try:
        with working_in(Alone(world().rank)):
            return _Part(compute(item))
    except Exception as error:
        if os.environ.get("SAFETYKIT_DEBUG"):
            traceback.print_exception(error)
        try:
            pickle.dumps(error)
        except Exception:
            return _Part(error=RuntimeError(f"{type(error).__name__}: {error}"))
        return _Part(error=error)
