"""MME (https://arxiv.org/abs/2306.13394): two questions about each picture, one to be answered yes and one no."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_QUESTIONS = "questions_answers_YN"
_ANSWERS = {"yes": "Yes", "no": "No"}
_PICTURES = (".jpg", ".png", ".jpeg")


@register
class MME(Importer):
    """Subtasks whose pictures lie in a folder of their own, and those where they lie beside the questions."""

    name = "mme"
    title = "MME"
    reads = "`SUBTASK/questions_answers_YN/ID.txt`, `SUBTASK/images/ID.jpg`; or both in `SUBTASK/`"
    licence = "for academic research; the pictures keep theirs"
    carriers = ("image",)
    metric = "accuracy, and accuracy+ of pictures with both answers right; their sum per subtask"
    files = (f"*/{_QUESTIONS}/*.txt", "*/*.txt")
    distinct = False  # any folder of texts is like it

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.every(*self.files):
            for row in source.words(name):
                parts = str(row.values.get("text", "")).split("\t")
                if len(parts) != 2:
                    yield Row(name, row.name, {}, row.fault or "has no question and answer with a tab between them")
                else:
                    yield Row(name, row.name, dict(zip(("question", "answer"), parts, strict=True)), key=row.key)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        file = PurePosixPath(row.file)
        apart = file.parent.name == _QUESTIONS
        folder = file.parent.parent / "images" if apart else file.parent
        names = [f"{folder / file.stem}{suffix}" for suffix in _PICTURES]
        path = next((name for name in names if (source.folder / name).is_file()), names[0])
        category = file.parent.parent.name if apart else file.parent.name
        named = f"{category}/{file.stem}"
        yield Draft(
            f"{named}/{row.key}",
            row.text("question"),
            "harmless",
            "image",
            source.picture(row, "", path),
            response=row.one_of("answer", _ANSWERS),
            category=category,
            group=named,
        )
