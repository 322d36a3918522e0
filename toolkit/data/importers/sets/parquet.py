"""Parquet files, such as those of the Hugging Face Hub, pictures included."""

from __future__ import annotations

from collections.abc import Iterator

from ..arrow import arrow_names, arrow_rows
from ..mapped import MappedImporter, keyed, require_mapping
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class Parquet(MappedImporter):
    """A record a row; a picture is the bytes of a file, a struct of bytes and path, or a path."""

    name = "parquet"
    title = "Parquet"
    reads = "`*.parquet` or `data/*.parquet` with columns such as `prompt`, `label`, `image`"
    licence = "yours"
    files = ("*.parquet", "data/*.parquet", "*/*.parquet")
    distinct = False

    def rows(self, source: Source) -> Iterator[Row]:
        for name in (files := source.find(*self.files)):
            require_mapping(name, arrow_names(source.file(name), name), source)
            yield from keyed(arrow_rows(source.file(name), name), name, files)
