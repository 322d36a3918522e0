"""JSON lines, and JSON lists of objects, whose keys are not those of records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..mapped import TAKES, drafted
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class JsonRows(Importer):
    """A record an object."""

    name = "json"
    title = "JSON or JSON lines"
    reads = "`*.jsonl` or `*.json` of objects with keys such as `prompt`, `label`, `image`"
    licence = "yours"
    files = ("*.jsonl", "*.json")
    distinct = False
    takes = TAKES

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.lines(name) if name.lower().endswith(".jsonl") else source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield drafted(row, source)
