"""Seed data sets of PyRIT (https://github.com/microsoft/PyRIT): objectives of its makers' red team."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..seeds import seed_draft, seed_rows
from ..source import Source


@register
class PyritSeeds(Importer):
    """The red team's own seeds, or those of a file that is named; what a seed's file is called begins its id."""

    name = "pyrit"
    title = "PyRIT, seed data sets"
    reads = "`datasets/seed_datasets/local/airt/*.prompt` of the package, or any such file; `package:pyrit`"
    licence = "MIT; other sets of the package have their own"
    carriers = ("text",)
    metric = "objectives that a scoring model finds fulfilled"
    files = ("datasets/seed_datasets/local/airt/*.prompt", "airt/*.prompt")
    distinct = False  # the package holds AdvBench, too

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from seed_rows(source, name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield seed_draft(row, f"{PurePosixPath(row.file).stem}/{row.key}")
