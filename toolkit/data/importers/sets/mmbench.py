"""MMBench (https://github.com/open-compass/MMBench): questions with up to four options, the picture in the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..choices import asked
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source, embedded

_LETTERS = "ABCD"
_SHIFT = 1_000_000  # between the numbers of a question and of the same one with its options turned


@register
class MMBench(Importer):
    """A question and its turned copies, where the file has them, are one group. The test part has no answers."""

    name = "mmbench"
    title = "MMBench"
    reads = "`MMBench_DEV_EN.tsv` or another part; pictures in base64"
    licence = "Apache-2.0; the pictures keep theirs"
    carriers = ("image",)
    metric = "circular accuracy: a question counts if it is right with its options turned every way"
    files = ("*MMBench*.tsv", "mmbench*.tsv")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("index", "question", "A", "B", "image"), tabs=True)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        options = [row.text(letter) for letter in _LETTERS if row.has(letter)]
        index = row.word("index")
        if not index.isascii() or not index.isdigit():
            raise row.bad("index", "is no number")
        hint = row.text("hint") if row.has("hint") and row.text("hint") != "nan" else ""
        letters = {letter.lower(): letter for letter in _LETTERS[: len(options)]}
        yield Draft(
            index,
            asked(row.text("question"), options, hint),
            "harmless",
            "image",
            embedded(row, "image"),
            response=row.one_of("answer", letters) if row.has("answer") else None,
            category=row.text("category") if row.has("category") else "",
            group=str(int(index) % _SHIFT),
        )
