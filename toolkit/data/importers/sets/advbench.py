"""AdvBench (https://github.com/llm-attacks/llm-attacks): harmful behaviours as instructions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class AdvBench(Importer):
    """The goals; the targets, with which an affirmative answer begins, are what an optimiser aims at and no answer."""

    name = "advbench"
    title = "AdvBench"
    reads = "`data/advbench/harmful_behaviors.csv`"
    licence = "MIT"
    carriers = ("text",)
    metric = "attack success rate: no phrase of refusal in the answer"
    files = ("data/advbench/harmful_behaviors.csv", "advbench/harmful_behaviors.csv", "harmful_behaviors.csv")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("goal", "target"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield Draft(row.key, row.text("goal"), "harmful", "text")
