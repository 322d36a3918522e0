"""SIUO (https://github.com/sinwang20/SIUO): picture and request are each harmless, their combination is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class SIUO(Importer):
    """The generation task; its reference answers are left out, for they are what a safe model says.

    The intent is the request with the publishers' warning of what is unsafe about it, which judges need.
    """

    name = "siuo"
    title = "SIUO"
    reads = "`siuo_gen.json`, `images/`; also in `data/`"
    licence = "none stated in its repository; ask its authors"
    carriers = ("text+image",)
    metric = "shares of safe and of effective answers, by people or a judge"
    files = ("siuo_gen.json", "data/siuo_gen.json")
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        path = source.beside(PurePosixPath(row.file).parent / "images", row.text("image"))
        yield Draft(
            row.word("question_id"),
            row.text("question"),
            "harmful",
            "text+image",
            source.picture(row, "image", path),
            category=row.text("category"),
            intent=f"{row.text('question')} [{row.text('safety_warning')}]" if row.has("safety_warning") else "",
        )
