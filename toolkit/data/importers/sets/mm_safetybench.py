"""MM-SafetyBench (https://github.com/isXinLiu/MM-SafetyBench): questions carried by three kinds of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ...record import Carrier
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

# Kind of picture → which question goes with it, and how the harm arrives.
_KINDS: dict[str, tuple[str, Carrier]] = {
    "SD": ("Rephrased Question(SD)", "image"),
    "SD_TYPO": ("Rephrased Question", "typographic"),
    "TYPO": ("Rephrased Question", "typographic"),
}


@register
class MMSafetyBench(Importer):
    """Thirteen scenarios; the question alone is a record, too."""

    name = "mm-safetybench"
    title = "MM-SafetyBench"
    reads = "`data/processed_questions/*.json`, `data/imgs/SCENARIO/{SD,SD_TYPO,TYPO}/ID.jpg`"
    licence = "CC BY-NC 4.0: no commercial use"
    carriers = ("text", "image", "typographic")
    metric = "attack success rate by a judge, per scenario and kind of picture"
    files = ("data/processed_questions/*.json", "processed_questions/*.json")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        file = PurePosixPath(row.file)
        named = f"{file.stem}/{row.key}"
        category = re.sub(r"^\d+-", "", file.stem)
        folder = file.parent.parent / "imgs" / file.stem
        yield Draft(f"{named}/text", row.text("Question"), "harmful", "text", category=category, group=named)
        for kind, (field, carrier) in _KINDS.items():
            yield Draft(
                f"{named}/{kind}",
                row.text(field),
                "harmful",
                carrier,
                source.picture(row, kind, f"{folder}/{kind}/{row.key}.jpg", source.folder),
                field=kind,
                category=category,
                group=named,
                tags=(kind,),
            )
