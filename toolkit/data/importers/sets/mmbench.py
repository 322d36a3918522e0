"""MMBench (https://github.com/open-compass/MMBench): questions with up to four options, the picture in the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..choices import asked
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source, embedded

_LETTERS = "ABCD"
_COLUMNS = ("index", "question", "A", "B", "image")
_SHIFT = 1_000_000  # between the numbers of a question and of the same one with its options turned


@register
class MMBench(Importer):
    """A question and its copies with the options turned every way are one group.

    Some files hold the copies, with their own numbers; of those that hold none, they are made. The test part has no
    answers.
    """

    name = "mmbench"
    title = "MMBench"
    reads = "`MMBench_DEV_EN.tsv` or another part; pictures in base64"
    licence = "Apache-2.0; the pictures keep theirs"
    carriers = ("image",)
    metric = "circular accuracy: a question counts if it is right with its options turned every way"
    files = ("*MMBench*.tsv", "mmbench*.tsv")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            turned = any(_number(row) >= _SHIFT for row in source.table(name, _COLUMNS, tabs=True))
            for row in source.table(name, _COLUMNS, tabs=True):
                yield row
                if not turned:
                    yield from _turns(row)

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


def _number(row: Row) -> int:
    """Its index; -1 where that is none, which is told when it is read."""
    index = str(row.values.get("index", ""))
    return int(index) if index.isascii() and index.isdigit() else -1


def _turns(row: Row) -> Iterator[Row]:
    """The row with its options moved on by one, by two and so on; none of a row that is not as it should be."""
    letters = [letter for letter in _LETTERS if row.has(letter)]
    answer = str(row.values.get("answer") or letters[0] if letters else "").strip().upper()
    if row.fault or _number(row) < 0 or answer not in letters:
        return
    for by in range(1, len(letters)):
        moved = {one: row.values[letters[(at + by) % len(letters)]] for at, one in enumerate(letters)}
        if row.has("answer"):
            moved["answer"] = letters[(letters.index(answer) - by) % len(letters)]
        values = {**row.values, **moved, "index": str(_number(row) + by * _SHIFT)}
        yield Row(row.file, row.name, values, key=row.key)
