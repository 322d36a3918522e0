"""Which rows decode together: a bounded queue, and a batch that rows join and leave while it decodes.

One thread owns the model. Each turn it lets go of the rows that were cancelled or are out of time, reads the prompts of
waiting rows as far as the batch has room, and then decodes one token for every row. Prompts are read several at a time,
which is cheaper: when a quarter of the batch is free, or its rows have had some tokens since. Prompts of different
kinds are read apart, for the short ones would be padded to the long ones. Clients take turns: a client that sends many
requests waits behind its own, not in front of others'. Rows of another variant (another adapter) wait until the batch
is empty, and nothing overtakes them meanwhile.

Rows that are complete leave the batch when others join, and the batch is copied once for both. Until then they run
along unheard, as long as fewer than half of the rows do: that costs less than a copy.

A prompt or a step that fails is tried again row by row, so that only the row fails whose fault it is. If the thread
itself fails, every row does, and nothing is accepted any more.

No HTTP and no model is known here.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters.errors import SafetykitError
from .rows import Broken, Busy, Draining, Engine, Row, TimedOut
from .waiting import Waiting

_ROOM = 4  # a batch that has this fraction of its places free reads prompts
_PATIENCE = 8  # and any other after so many steps
_UNHEARD = 0.5  # of its rows may run along after their end
_PACE = 0.2  # weight of the newest row in the mean time of a row
_MOST_WAIT = 60  # seconds that a refused client is told to wait at most


@dataclass
class _Batch:
    """Rows that decode together.

    Attributes:
        state: of these rows, and of others that have left since.
        size: how many rows the state has.
        places: of the rows in it.
        tokens: what was chosen for them and not yet fed.
    """

    state: Any
    size: int
    rows: list[Row]
    places: list[int]
    tokens: list[int]

    @property
    def fed(self) -> list[int | None]:
        """A token for every row of the state, but for those that have left."""
        tokens: list[int | None] = [None] * self.size
        for place, token in zip(self.places, self.tokens, strict=True):
            tokens[place] = token
        return tokens

    def only(self, keep: Callable[[Row], bool]) -> _Batch | None:
        """Without the rows that leave; None if all do."""
        at = [at for at, row in enumerate(self.rows) if keep(row)]
        if not at:
            return None
        places, tokens = [self.places[one] for one in at], [self.tokens[one] for one in at]
        return _Batch(self.state, self.size, [self.rows[one] for one in at], places, tokens)


class Scheduler:
    """Answers rows with an engine, in a thread of its own.

    Args:
        engine: what answers.
        max_batch: most rows that decode together.
        max_queue: most rows that wait.
        clock: seconds, for deadlines.
        when_broken: called from the thread if it fails, when nothing is accepted any more and before the rows are told.
        turned: called from the thread when rows may have been told something, after prompts and after every turn.

    Attributes:
        broken: whether the thread has failed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch: int,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
        when_broken: Callable[[BaseException], None] = lambda error: None,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._clock, self._when_broken, self._turned = engine, clock, when_broken, turned
        self.broken = False
        self.max_batch, self.max_queue = max_batch, max_queue
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._since: dict[Row, float] = {}  # when the prompt of a row that is answered was read
        self._variant: Hashable = None
        self._draining = self._closed = False
        self._pace = 0.0
        self._steps = 0  # since prompts were read
        self._thread = threading.Thread(target=self._work, name="safetykit-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        with self._changed:
            return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that are answered now."""
        return len(self._since)

    @property
    def ready(self) -> bool:
        """Whether rows are accepted."""
        return not self._draining and not self.broken

    def require_ready(self) -> None:
        """Refuse what would not be accepted.

        Raises:
            Draining: nothing new is accepted.
            Broken: nothing is answered any more.
        """
        if self.broken:
            raise Broken
        if self._draining:
            raise Draining

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows, all of them or none.

        Raises:
            Busy: there is no room for them.
            Draining: nothing new is accepted.
            Broken: nothing is answered any more.
        """
        with self._changed:
            self.require_ready()
            if (waiting := len(self._waiting)) + len(rows) > self.max_queue:
                turns = math.ceil((waiting + len(self._since)) / self.max_batch)
                raise Busy(waiting, min(max(1, math.ceil(turns * self._pace)), _MOST_WAIT))
            self._waiting.add(rows)
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> bool:
        """Accept nothing new and wait for what was accepted.

        Returns:
            Whether all of it was answered within ``seconds``.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting and not self._since, seconds)

    def close(self) -> None:
        """End the thread; rows that are still there fail."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        ending: Callable[[], SafetykitError] = Broken
        try:
            self._answer()
            ending = Draining
        except BaseException as error:
            with self._changed:
                self.broken = True
            self._when_broken(error)
        finally:
            with self._changed:
                rows = [*self._since, *self._waiting.without(lambda row: True)]
            for row in rows:
                with contextlib.suppress(Exception):  # of this row; the others are told all the same
                    self._fail(row, ending())
            self._turned()

    def _answer(self) -> None:
        """Turn after turn, until the scheduler is closed."""
        batch: _Batch | None = None
        while True:
            with self._changed:
                while not (batch or self._waiting or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                new, gone = self._admitted(batch)
            self._let_go(gone)
            try:
                batch = self._turn(batch, new)
            except Exception as error:  # of the engine, in what concerns all rows
                batch = None
                for row in list(self._since):
                    self._fail(row, error)
            self._turned()

    def _turn(self, batch: _Batch | None, new: list[Row]) -> _Batch | None:
        """Let go of rows, read new prompts and decode one token of each row."""
        batch = self._without_gone(batch)
        if new and new[0].variant != self._variant:  # so there is no batch
            new = self._used(new)
        begun = self._begun(new)
        self._turned()  # first words and refusals do not wait for the others' tokens
        if begun or (batch and len(batch.rows) <= _UNHEARD * batch.size):
            batch = self._joined([*([batch] if batch else []), *begun])
        return self._stepped(batch) if batch else None

    def _admitted(self, batch: _Batch | None) -> tuple[list[Row], list[Row]]:
        """Waiting rows whose prompts are read now, and those that nobody waits for or that waited too long."""
        gone = self._waiting.without(self._is_over)
        free = self.max_batch - (len(batch.rows) if batch else 0)
        self._steps = self._steps + 1 if batch else 0
        if batch and free * _ROOM < self.max_batch and self._steps < _PATIENCE:
            return [], gone
        rows = self._waiting.take(free, *([batch.rows[0].variant] if batch else []))  # another waits for an empty batch
        if rows:
            self._steps = 0
        now = self._clock()
        self._since.update((row, now) for row in rows)
        return rows, gone

    def _is_over(self, row: Row) -> bool:
        return row.cancelled or (row.deadline is not None and self._clock() > row.deadline)

    def _without_gone(self, batch: _Batch | None) -> _Batch | None:
        over = [row for row in batch.rows if self._is_over(row)] if batch else []
        self._let_go(over)
        return batch.only(lambda row: row not in over) if batch and over else batch

    def _let_go(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._fail(row, None if row.cancelled else TimedOut())

    def _used(self, rows: list[Row]) -> list[Row]:
        try:
            self._engine.use(rows[0].variant)
        except Exception as error:
            for row in rows:
                self._fail(row, error)
            return []
        self._variant = rows[0].variant
        return rows

    def _begun(self, rows: Sequence[Row]) -> list[_Batch]:
        """The rows after their prompts, those of a kind together; those whose prompt cannot be read fail."""
        kinds: dict[Hashable, list[Row]] = {}
        for row in rows:
            kinds.setdefault(row.kind, []).append(row)
        return [batch for alike in kinds.values() for batch in self._read(alike)]

    def _read(self, rows: list[Row]) -> list[_Batch]:
        try:
            state = self._engine.begin(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0], error)
                return []
            return [batch for row in rows for batch in self._read([row])]
        found = self._advanced(_Batch(state, len(rows), rows, list(range(len(rows))), [0] * len(rows)))
        return [found] if found else []

    def _joined(self, batches: Sequence[_Batch]) -> _Batch | None:
        """One batch of them, without what is left of rows that are gone."""
        if not batches:
            return None
        state = self._engine.join([(batch.state, batch.places) for batch in batches])
        rows = [row for batch in batches for row in batch.rows]
        tokens = [token for batch in batches for token in batch.tokens]
        return _Batch(state, len(rows), rows, list(range(len(rows))), tokens)

    def _stepped(self, batch: _Batch) -> _Batch | None:
        """One token more of each row."""
        try:
            state = self._engine.step(batch.state, batch.fed)
        except Exception as error:
            if len(batch.rows) == 1:
                self._fail(batch.rows[0], error)
                return None
            alone = [self._joined([part]) for row in batch.rows if (part := batch.only({row}.__contains__))]
            return self._joined([one for part in alone if part and (one := self._stepped(part))])
        return self._advanced(_Batch(state, batch.size, batch.rows, batch.places, batch.tokens))

    def _advanced(self, batch: _Batch) -> _Batch | None:
        """Every row's next token; rows that are complete or fail leave."""
        staying = set()
        for at, (row, place) in enumerate(zip(batch.rows, batch.places, strict=True)):
            try:
                token = row.advance(batch.state, place)
            except Exception as error:
                self._fail(row, error)
                continue
            if token is None:
                self._ended(row)
            else:
                batch.tokens[at] = token
                staying.add(row)
        return batch.only(staying.__contains__)

    def _fail(self, row: Row, error: BaseException | None) -> None:
        if error is not None:
            row.failed(error)
        self._ended(row)

    def _ended(self, row: Row) -> None:
        with self._changed:
            if (since := self._since.pop(row, None)) is not None:
                spent = self._clock() - since
                self._pace += (_PACE if self._pace else 1.0) * (spent - self._pace)
            self._changed.notify_all()
