"""What an importer declares, and what it makes of a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..record import Carrier, Label
from .rows import Row
from .source import Option, Source


@dataclass(frozen=True)
class Draft:
    """A record to be, without its split; its fields are those of :class:`~safetykit.toolkit.data.record.Record`.

    Attributes:
        id: unique within the data set.
        picture: a file, or the bytes of one.
        pictures: several of them.
        messages: a conversation in the place of the prompt; its pictures are those of the record.
        field: where the row says which picture it is, for errors.
    """

    id: str
    prompt: str
    label: Label
    carrier: Carrier
    picture: Path | bytes | None = None
    field: str = "image"
    response: str | None = None
    answers: tuple[str, ...] = ()
    intent: str = ""
    category: str = ""
    pair: str | None = None
    group: str = ""
    tags: tuple[str, ...] = ()
    pictures: tuple[Path | bytes, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()

    def but(self, **changes: object) -> Draft:
        """The same with ``changes``."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Importer:
    """Reads one published data set, or one common format.

    Attributes:
        name: as people type it.
        title: as people read it.
        reads: the files that it looks for, for tables; Markdown.
        licence: what its publishers say of using it; nothing is shipped here.
        carriers: of the records that it makes; empty where that depends on the file.
        metric: how its publishers count; empty of a format.
        files: patterns of the files with its rows; those of the first that matches are read.
        distinct: a folder with such a file is taken for this data set.
        takes: the options of an import that act here.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads: ClassVar[str]
    licence: ClassVar[str]
    carriers: ClassVar[tuple[Carrier, ...]] = ()
    metric: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    distinct: ClassVar[bool] = True
    takes: ClassVar[tuple[Option, ...]] = ()

    def unused(self, row: Row, source: Source) -> Iterable[str]:
        """Columns of a row that nothing is made of, where people may believe otherwise; none of published data sets."""
        return ()

    def unread(self, source: Source) -> Iterable[str]:
        """Files beside its own that are not read, where people may believe otherwise; none of published data sets."""
        return ()

    def rows(self, source: Source) -> Iterator[Row]:
        """The rows of its files, in order; none is held.

        Raises:
            BadRow: a file is missing, or is not of its kind as a whole.
        """
        raise NotImplementedError

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        """What a row becomes: a record, or several.

        Raises:
            BadRow: it is not as the data set says.
        """
        raise NotImplementedError
