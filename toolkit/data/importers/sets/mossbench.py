"""MOSSBench (https://github.com/xirui-li/MOSSBench): harmless requests with pictures that look dangerous."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class MOSSBench(Importer):
    """Three types of stimuli, which are the categories."""

    name = "mossbench"
    title = "MOSSBench"
    reads = "`data/images_information/information.json`, `data/images/`"
    licence = "CC BY-SA 4.0; for evaluation"
    carriers = ("text+image",)
    metric = "refusal rate by a judge, per type"
    files = ("data/images_information/information.json", "images_information/information.json")
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        path = source.beside(PurePosixPath(row.file).parent.parent, row.text("image"))
        about = row.at("metadata", row.value("metadata"))
        yield Draft(
            row.key,
            row.text("question"),
            "harmless",
            "text+image",
            source.picture(row, "image", path),
            category=about.text("over"),
            tags=("look-alike",),
        )
