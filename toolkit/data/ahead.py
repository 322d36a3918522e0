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


class Pictured(Protocol):
    """What has a picture: a record."""

    @property
    def pictured(self) -> bool: ...

    def picture(self) -> Image.Image | None: ...


class PicturesAhead:
    """Pictures of records that are asked for in a known order.

    Workers decode those of stored records, as many as their store was given; another record, or one that is asked
    for again, is decoded when it is asked for. Who asks gets the same picture either way, and the same error.

    Args:
        records: in the order in which they will be asked for.
    """

    def __init__(self, records: Iterable[Pictured]) -> None:
        self._coming: Iterator[Pictured] = (record for record in records if record.pictured)
        self._waiting: deque[tuple[Pictured, Future[Image.Image | None]]] = deque()

    def of(self, record: Pictured) -> Image.Image | None:
        """The picture of a record; None without one."""
        pool = record.store.pool if isinstance(record, StoredRecord) else None
        if pool is None or not record.pictured:
            return record.picture()
        for one in islice(self._coming, _AHEAD - len(self._waiting)):
            self._waiting.append((one, pool.submit(one.picture)))
        if self._waiting and self._waiting[0][0] is record:
            return self._waiting.popleft()[1].result()
        return record.picture()
