"""JSON lines, and JSON lists of objects, whose keys are not those of records."""

from __future__ import annotations

from collections.abc import Iterator

from ..mapped import MappedImporter, keyed
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class JsonRows(MappedImporter):
    """A record an object."""

    name = "json"
    title = "JSON or JSON lines"
    reads = "`*.jsonl` or `*.json` of objects with keys such as `prompt`, `label`, `image`"
    licence = "yours"
    files = ("*.jsonl", "*.json")
    distinct = False

    def rows(self, source: Source) -> Iterator[Row]:
        for name in (files := source.find(*self.files)):
            rows = source.lines(name) if name.lower().endswith(".jsonl") else source.objects(name)
            yield from keyed(rows, name, files)
