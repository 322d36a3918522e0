"""MM-Vet (https://github.com/yuweihao/MM-Vet): open questions that need several capabilities at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class MMVet(Importer):
    """Its answers are for a judge, with `<AND>` and `<OR>` between parts; no model gives them word for word."""

    name = "mm-vet"
    title = "MM-Vet"
    reads = "`mm-vet.json`, `images/`"
    licence = "CC BY-NC 4.0: no commercial use; the pictures keep theirs"
    carriers = ("image",)
    metric = "score from 0 to 1 by a judge, per capability"
    files = ("mm-vet.json",)
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        path = source.beside(PurePosixPath(row.file).parent / "images", row.text("imagename"))
        picture = source.picture(row, "imagename", path)
        category = "+".join(row.items("capability", str))
        yield Draft(
            row.key,
            row.text("question"),
            "harmless",
            "image",
            picture,
            "imagename",
            answers=(row.text("answer"),) if row.has("answer") else (),
            category=category,
        )
