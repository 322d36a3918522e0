"""Pictures that are decoded beside the model: those of the next records, while it runs on these."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Protocol

from PIL import Image

from .stored import StoredRecord

_AHEAD = 64  # pictures that wait for the model
_RECENT = 256  # records that are known when they are asked for again, as where a batch did not fit


class Pictured(Protocol):
    """What has pictures: a record."""

    @property
    def pictured(self) -> bool: ...

    def pictures(self) -> tuple[Image.Image, ...]: ...


class PicturesAhead:
    """Pictures of records that are asked for in a known order.

    Workers decode those of stored records, as many as their store was given. Records may be passed over, which others
    see to; one that is asked for again, or stands nowhere in the order, is decoded when it is asked for. Who asks gets
    the same picture either way, and the same error.

    Args:
        records: in the order in which they will be asked for.
    """

    def __init__(self, records: Iterable[Pictured]) -> None:
        self._coming: Iterator[Pictured] = (record for record in records if record.pictured)
        self._waiting: deque[tuple[Pictured, Future[tuple[Image.Image, ...]]]] = deque()
        self._recent: deque[Pictured] = deque(maxlen=_RECENT)

    def of(self, record: Pictured) -> tuple[Image.Image, ...]:
        """The pictures of a record."""
        pool = record.store.pool if isinstance(record, StoredRecord) else None
        if pool is None or not record.pictured:
            return record.pictures()
        if any(record is one for one in self._recent):
            return record.pictures()
        self._recent.append(record)
        found = self._awaited(record)
        for one in islice(self._coming, _AHEAD - len(self._waiting)):
            self._waiting.append((one, pool.submit(one.pictures)))
        return record.pictures() if found is None else found.result()

    def _awaited(self, record: Pictured) -> Future[tuple[Image.Image, ...]] | None:
        """The pictures that are already on their way; what was to come before it is passed over."""
        while self._waiting:
            one, future = self._waiting.popleft()
            if one is record:
                return future
            future.cancel()
        next((one for one in self._coming if one is record), None)
        return None
