"""Folders that `datasets` saved on disk."""

from __future__ import annotations

from collections.abc import Iterator

from ...listing import dataset_files
from ..arrow import arrow_names, arrow_rows
from ..mapped import MappedImporter, keyed, require_mapping
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class DatasetsFolder(MappedImporter):
    """Of a ``DatasetDict``, all its data sets."""

    name = "datasets"
    title = "`datasets` on disk"
    reads = "what `save_to_disk` wrote, with columns such as `prompt`, `label`, `image`"
    licence = "yours"
    files = ("dataset_dict.json", "state.json")
    alone = True

    def rows(self, source: Source) -> Iterator[Row]:
        source.find(*self.files)
        files = [path.relative_to(source.folder).as_posix() for path in dataset_files(source.folder)]
        for name in files:
            require_mapping(name, arrow_names(source.file(name), name), source)
            yield from keyed(arrow_rows(source.file(name), name), name, files)
