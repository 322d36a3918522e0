"""ScienceQA (https://github.com/lupantech/ScienceQA): school questions with options, about half with a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from string import ascii_uppercase

from ..choices import asked
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_PART = "test"


@register
class ScienceQA(Importer):
    """The questions of its test part."""

    name = "scienceqa"
    title = "ScienceQA"
    reads = "`data/scienceqa/problems.json`, `data/scienceqa/images/test/ID/image.png`"
    licence = "CC BY-NC-SA 4.0: no commercial use"
    carriers = ("text", "image")
    metric = "accuracy, per subject, kind of context and grade"
    files = ("data/scienceqa/problems.json", "scienceqa/problems.json", "problems.json")
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            for row in source.objects(name):
                if row.fault or row.values.get("split", _PART) == _PART:
                    yield row

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        options, answer = row.items("choices", str), row.value("answer")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
            raise row.bad("answer", f"is none of the {len(options)} choices")
        hint = row.text("hint") if row.has("hint") else ""
        picture = None
        if row.has("image"):
            folder = PurePosixPath(row.file).parent / "images"
            path = source.beside(folder, str(PurePosixPath(_PART, row.key, row.text("image"))))
            picture = source.picture(row, "image", path)
        contexts = [name for name, given in (("context:text", hint), ("context:image", picture)) if given]
        grade = (row.text("grade"),) if row.has("grade") else ()
        yield Draft(
            row.key,
            asked(row.text("question"), options, hint),
            "harmless",
            "image" if picture else "text",
            picture,
            response=ascii_uppercase[answer],
            category=row.text("subject"),
            tags=(*(contexts or ["context:none"]), *grade),
        )
