"""Several processes of a job as threads of this one, to see what they deal out without starting any."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from safetykit.adapters.errors import ProcessLost
from safetykit.toolkit.distributed.world import working_in

T = TypeVar("T")


class Ranks:
    """``size`` threads that gather like processes: what one hands over, the others get as a copy."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: dict[int, dict[int, Any]] = {}
        self._waiting: dict[int, list[Future[list[Any]]]] = {}
        self._lock = threading.Lock()
        self._gone = False

    def run(self, work: Callable[[int], T]) -> list[T | Exception]:
        """``work(rank)`` on each; what it returned or raised, by rank."""

        def one(rank: int) -> T | Exception:
            with working_in(_Rank(self, rank)):
                try:
                    return work(rank)
                except Exception as error:
                    self.leave()
                    return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))

    def gather(self, rank: int, turn: int, part: Any) -> Future[list[Any]]:
        """The parts of all, once the last has handed over its part of this turn."""
        found: Future[list[Any]] = Future()
        with self._lock:
            parts = self._parts.setdefault(turn, {})
            assert rank not in parts
            parts[rank] = copy.deepcopy(part)
            waiting = self._waiting.setdefault(turn, [])
            waiting.append(found)
            if len(parts) == self.size:
                for one in [one for one in waiting if not one.done()]:
                    one.set_result(copy.deepcopy([parts[at] for at in range(self.size)]))
                del self._parts[turn], self._waiting[turn]
            elif self._gone:
                found.set_exception(ProcessLost("gone"))
        return found

    def leave(self) -> None:
        """One is gone: who waits for it is told."""
        with self._lock:
            self._gone = True
            for waiting in self._waiting.values():
                for one in waiting:
                    if not one.done():
                        one.set_exception(ProcessLost("gone"))


class _Rank:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks, self.rank, self.size, self._turn = ranks, rank, ranks.size, 0

    def gather(self, part: Any) -> Future[list[Any]]:
        self._turn += 1
        return self._ranks.gather(self.rank, self._turn, part)
