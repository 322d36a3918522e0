"""CSV and TSV tables."""

from __future__ import annotations

from collections.abc import Iterator

from ..mapped import MappedImporter, keyed, require_mapping
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class Table(MappedImporter):
    """A record a row; with tabs between the cells where the file's name ends in ``.tsv``."""

    name = "csv"
    title = "CSV or TSV"
    reads = "`*.csv` or `*.tsv` with columns such as `prompt`, `label`, `image`"
    licence = "yours"
    files = ("*.csv", "*.tsv")
    distinct = False

    def rows(self, source: Source) -> Iterator[Row]:
        for name in (files := source.find(*self.files)):
            table = source.table(name, tabs=name.lower().endswith(".tsv"))
            for number, row in enumerate(keyed(table, name, files)):
                if not number and not row.fault:
                    require_mapping(name, list(row.values), source)
                yield row
