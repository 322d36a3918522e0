"""MM-SafetyBench (https://github.com/isXinLiu/MM-SafetyBench): questions carried by three kinds of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ...record import Carrier
from ..arrow import arrow_names, arrow_rows
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row, require_columns
from ..source import Source

# Kind of picture → which question goes with it, and how the harm arrives.
_KINDS: dict[str, tuple[str, Carrier]] = {
    "SD": ("Rephrased Question(SD)", "image"),
    "SD_TYPO": ("Rephrased Question", "typographic"),
    "TYPO": ("Rephrased Question", "typographic"),
}
_TEXT_ONLY = "Text_only"  # as the Hub calls the question alone


@register
class MMSafetyBench(Importer):
    """Thirteen scenarios; the question alone is a record, too. On the Hub each kind of a scenario is a Parquet file."""

    name = "mm-safetybench"
    title = "MM-SafetyBench"
    reads = (
        "`data/processed_questions/*.json`, `data/imgs/SCENARIO/{SD,SD_TYPO,TYPO}/ID.jpg`; of the Hub "
        "`data/SCENARIO/{SD,SD_TYPO,TYPO,Text_only}-*.parquet`"
    )
    licence = "CC BY-NC 4.0: no commercial use"
    carriers = ("text", "image", "typographic")
    metric = "attack success rate by a judge, per scenario and kind of picture"
    files = ("data/processed_questions/*.json", "processed_questions/*.json", "data/*/Text_only-*.parquet")

    def rows(self, source: Source) -> Iterator[Row]:
        names = source.find(*self.files)
        if not names[0].endswith(".parquet"):
            for name in names:
                yield from source.objects(name)
            return
        for name in source.every(*(f"data/*/{kind}-*.parquet" for kind in (_TEXT_ONLY, *_KINDS))):
            path = source.file(name)
            require_columns(name, arrow_names(path, name), ("id", "question", "image"))
            yield from arrow_rows(path, name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        return self._of_hub(row) if row.file.endswith(".parquet") else self._of_repository(row, source)

    def _of_repository(self, row: Row, source: Source) -> Iterator[Draft]:
        file = PurePosixPath(row.file)
        category = re.sub(r"^\d+-", "", file.stem)
        named = f"{category}/{row.key}"
        folder = file.parent.parent / "imgs" / file.stem
        yield Draft(f"{named}/text", row.text("Question"), "harmful", "text", category=category, group=named)
        for kind, (field, carrier) in _KINDS.items():
            picture = source.picture(row, kind, f"{folder}/{kind}/{row.key}.jpg", source.folder)
            text = row.text(field)
            yield _draft(named, kind, text, carrier, picture, field=kind, category=category)

    def _of_hub(self, row: Row) -> Iterator[Draft]:
        file = PurePosixPath(row.file)
        category, kind = file.parent.name, file.name.partition("-")[0]
        named = f"{category}/{row.word('id')}"
        if kind == _TEXT_ONLY:
            yield Draft(f"{named}/text", row.text("question"), "harmful", "text", category=category, group=named)
            return
        yield _draft(named, kind, row.text("question"), _KINDS[kind][1], row.packed("image"), category=category)


def _draft(named: str, kind: str, text: str, carrier: Carrier, picture: Path | bytes, **more: Any) -> Draft:
    """A question with a picture."""
    return Draft(f"{named}/{kind}", text, "harmful", carrier, picture, group=named, tags=(kind,), **more)
