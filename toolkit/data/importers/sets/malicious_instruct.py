"""MaliciousInstruct (https://github.com/Princeton-SysML/Jailbreak_LLM): one hundred malicious instructions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source


@register
class MaliciousInstruct(Importer):
    """Instructions without categories."""

    name = "malicious-instruct"
    title = "MaliciousInstruct"
    reads = "`MaliciousInstruct.txt`, one instruction a line"
    licence = "none stated in its repository; ask its authors"
    carriers = ("text",)
    metric = "attack success rate by a trained classifier"
    files = ("data/MaliciousInstruct.txt", "MaliciousInstruct.txt")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.words(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield Draft(row.key, row.text("text"), "harmful", "text")
