"""JailBreakV-28K (https://huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k): attacks in text and by picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ...record import Carrier
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

# Attacks that were made for text stand beside a picture; the others act by theirs.
_FORMATS: dict[str, Carrier] = {
    "template": "text+image",
    "persuade": "text+image",
    "logic": "text+image",
    "figstep": "typographic",
    "sd": "image",
    "sd_typo": "typographic",
    "typo": "typographic",
}
_COLUMNS = ("id", "jailbreak_query", "redteam_query", "format", "policy", "image_path")


@register
class JailBreakV(Importer):
    """All of it, or the mini version where that is named or the only one."""

    name = "jailbreakv-28k"
    title = "JailBreakV-28K"
    reads = "`JailBreakV_28K/JailBreakV_28K.csv`, the pictures that its `image_path` names"
    licence = "MIT"
    carriers = ("text+image", "image", "typographic")
    metric = "attack success rate by Llama Guard, per format"
    files = (
        "JailBreakV_28K/JailBreakV_28K.csv",
        "JailBreakV_28K.csv",
        "JailBreakV_28K/mini_JailBreakV_28K.csv",
        "mini_JailBreakV_28K.csv",
    )
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, _COLUMNS)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        path = source.beside(PurePosixPath(row.file).parent, row.text("image_path"))
        yield Draft(
            row.word("id"),
            row.text("jailbreak_query"),
            "harmful",
            row.one_of("format", _FORMATS),
            source.picture(row, "image_path", path),
            field="image_path",
            category=row.text("policy"),
            group=hashlib.sha256(row.text("redteam_query").encode()).hexdigest()[:12],
            tags=(row.text("format"),),
        )
