"""TextVQA (https://textvqa.org): questions about words in photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import BadRow, Row
from ..source import Source


@register
class TextVQA(Importer):
    """The validation part; the expected answer is that of most of the ten people."""

    name = "textvqa"
    title = "TextVQA"
    reads = "`TextVQA_0.5.1_val.json`, `train_images/`"
    licence = "CC BY 4.0; the pictures are Open Images'"
    carriers = ("image",)
    metric = "soft accuracy: a third for each of the ten people who gave the answer, at most 1"
    files = ("TextVQA_*_val.json",)
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            found = source.document(name)
            if not isinstance(found, Mapping) or not isinstance(found.get("data"), list):
                raise BadRow(name, "", "data", "there is no such list")
            yield from source.objects(name, found["data"])

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        image = row.word("image_id")
        path = source.beside(PurePosixPath(row.file).parent / "train_images", f"{image}.jpg")
        answers = row.items("answers", str) if row.has("answers") else []
        yield Draft(
            row.word("question_id"),
            row.text("question"),
            "harmless",
            "image",
            source.picture(row, "image_id", path),
            field="image_id",
            response=Counter(answers).most_common(1)[0][0] if answers else None,
            answers=tuple(answers),
            group=image,
        )
