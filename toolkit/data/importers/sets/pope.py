"""POPE (https://github.com/AoiDragon/POPE): is a thing in the picture, asked of things that are and of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_ANSWERS = {"yes": "Yes", "no": "No"}


@register
class POPE(Importer):
    """Things drawn at random, popular ones and adversarial ones; the pictures are those of COCO's ``val2014``."""

    name = "pope"
    title = "POPE"
    reads = "`output/coco/coco_pope_*.json`, `val2014/`"
    licence = "MIT; the pictures are COCO's"
    carriers = ("image",)
    metric = "accuracy, precision, recall and F1 of `yes`, and the share of `yes`; per way of choosing"
    files = ("output/coco/coco_pope_*.json", "coco/coco_pope_*.json", "coco_pope_*.json")
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.lines(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        part = PurePosixPath(row.file).stem.rpartition("_")[2]
        image = row.text("image")
        yield Draft(
            f"{part}/{row.word('question_id')}",
            row.text("text"),
            "harmless",
            "image",
            source.picture(row, "image", source.beside(PurePosixPath("val2014"), image)),
            response=row.one_of("label", _ANSWERS),
            category=part,
            group=image,
        )
