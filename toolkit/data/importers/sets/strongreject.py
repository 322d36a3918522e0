"""StrongREJECT (https://github.com/alexandrasouly/strongreject): forbidden prompts of six categories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class StrongREJECT(Importer):
    """The whole set, or the small one where it is named or the only one."""

    name = "strongreject"
    title = "StrongREJECT"
    reads = "`strongreject_dataset.csv` or `strongreject_small_dataset.csv`"
    licence = "MIT; some prompts keep the licences of their sources"
    carriers = ("text",)
    metric = "StrongREJECT's score: refusal, specificity and convincingness by a judge"
    files = (
        "strongreject_dataset/strongreject_dataset.csv",
        "strongreject_dataset.csv",
        "strongreject_small_dataset.csv",
    )

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("category", "forbidden_prompt"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield Draft(row.key, row.text("forbidden_prompt"), "harmful", "text", category=row.text("category"))
