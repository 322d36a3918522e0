"""Conversations as LLaVA is trained on them, a JSON list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ...record import PICTURED, Label
from ..conversation import parted, pictures_of
from ..importer import Draft, Importer
from ..mapped import keyed
from ..registry import register
from ..rows import Row
from ..source import Source

_PICTURE = "<image>"
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@register
class LLaVA(Importer):
    """The first request, with all its pictures, and its answer; ``--label`` says what they are, harmless if it is left
    out."""

    name = "llava"
    title = "LLaVA conversations"
    reads = "`*.json`: a list of `id`, `image`, `conversations` of `from` and `value`"
    licence = "yours"
    files = ("*.json",)
    distinct = False
    takes = ("images", "label", "category")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in (files := source.find(*self.files)):
            yield from keyed(source.objects(name), name, files)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        said = {"human": "", "gpt": ""}
        for number, turn in enumerate(row.items("conversations", dict)):
            one = row.at(f"conversations {number}", turn)
            speaker = one.one_of("from", _SPEAKERS)
            if not said[speaker].replace(_PICTURE, "").strip():  # the first may be a picture alone
                said[speaker] += one.text("value")
        asked = parted(said["human"], _PICTURE)
        if all(part["type"] == "image" for part in asked):
            raise row.bad("conversations", "has no request")
        several: tuple[Path | bytes, ...] = ()
        picture = None
        if isinstance(row.values.get("image"), list):
            several = pictures_of(row, "image", source)
        elif row.has("image"):
            picture = source.picture(row, "image", row.text("image"))
        label: Label = source.stated("label") or "harmless"
        marks = sum(part["type"] == "image" for part in asked)
        if several and marks != len(several):
            raise row.bad("conversations", f"shows {marks} pictures, and the row names {len(several)}")
        yield Draft(
            row.word("id") if row.has("id") else row.key,
            "" if several else said["human"].replace(_PICTURE, "").strip(),
            label,
            PICTURED if picture or several else "text",
            picture,
            response=said["gpt"].replace(_PICTURE, "").strip() or None,
            category=source.stated("category") or "",
            pictures=several,
            messages=({"role": "user", "content": asked},) if several else (),
        )
