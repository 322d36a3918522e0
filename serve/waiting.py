"""Rows that wait for their turn: clients take turns, and rows of one variant are taken at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence

from .rows import Row


class Waiting:
    """A queue by client. It is not guarded against several threads."""

    def __init__(self) -> None:
        self._queues: deque[tuple[Hashable, deque[Row]]] = deque()  # none of them empty, in the order of turns

    def __len__(self) -> int:
        return sum(len(queue) for _, queue in self._queues)

    def add(self, rows: Sequence[Row]) -> None:
        """Let rows wait behind those of their client."""
        for row in rows:
            own = next((queue for client, queue in self._queues if client == row.client), None)
            if own is None:
                self._queues.append((row.client, own := deque()))
            own.append(row)

    def without(self, is_over: Callable[[Row], bool]) -> list[Row]:
        """Take out, whoever's turn it is, the rows of which this is true."""
        gone = [row for _, queue in self._queues for row in queue if is_over(row)]
        for _, queue in self._queues:
            for row in [row for row in queue if row in gone]:
                queue.remove(row)
        self._queues = deque((client, queue) for client, queue in self._queues if queue)
        return gone

    def take(self, most: int, *variant: Hashable) -> list[Row]:
        """The next rows, one of each client in turn, as long as they are of this variant; by default the first's."""
        rows: list[Row] = []
        while self._queues and len(rows) < most:
            client, queue = self._queues[0]
            variant = variant or (queue[0].variant,)
            if queue[0].variant != variant[0]:
                break  # and nobody overtakes it
            rows.append(queue.popleft())
            self._queues.popleft()
            if queue:
                self._queues.append((client, queue))  # the next turn is another client's
        return rows
