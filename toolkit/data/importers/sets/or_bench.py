"""OR-Bench (https://huggingface.co/datasets/bench-llm/or-bench): requests that models refuse wrongly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class ORBench(Importer):
    """Every table that lies there; what is toxic, its file's name tells."""

    name = "or-bench"
    title = "OR-Bench"
    reads = "`or-bench-80k.csv`, `or-bench-hard-1k.csv`, `or-bench-toxic.csv`"
    licence = "CC BY 4.0"
    carriers = ("text",)
    metric = "refused share of harmless and of toxic prompts, by key words or a judge"
    files = ("or-bench-*.csv",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("prompt", "category"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        part = row.file.removesuffix(".csv").removeprefix("or-bench-")
        toxic = part == "toxic"
        yield Draft(
            f"{part}/{row.key}",
            row.text("prompt"),
            "harmful" if toxic else "harmless",
            "text",
            category=row.text("category"),
            tags=() if toxic else ("look-alike",),
        )
