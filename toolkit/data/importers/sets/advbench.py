"""AdvBench (https://github.com/llm-attacks/llm-attacks): harmful behaviours as instructions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..seeds import SUFFIX, seed_draft, seed_rows
from ..source import Source


@register
class AdvBench(Importer):
    """The goals; the targets, with which an affirmative answer begins, are what an optimiser aims at and no answer.

    PyRIT carries the goals with categories of its own.
    """

    name = "advbench"
    title = "AdvBench"
    reads = (
        "`data/advbench/harmful_behaviors.csv`; of PyRIT `datasets/seed_datasets/local/adv_bench.prompt`: "
        "`package:pyrit`"
    )
    licence = "MIT"
    carriers = ("text",)
    metric = "attack success rate: no phrase of refusal in the answer"
    files = (
        "data/advbench/harmful_behaviors.csv",
        "advbench/harmful_behaviors.csv",
        "harmful_behaviors.csv",
        "datasets/seed_datasets/local/adv_bench.prompt",
        "adv_bench.prompt",
    )

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            if name.endswith(SUFFIX):
                yield from seed_rows(source, name)
            else:
                yield from source.table(name, ("goal", "target"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        if row.file.endswith(SUFFIX):
            yield seed_draft(row, row.key)
        else:
            yield Draft(row.key, row.text("goal"), "harmful", "text")
