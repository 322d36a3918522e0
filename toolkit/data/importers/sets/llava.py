"""Conversations as LLaVA is trained on them, a JSON list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...record import PICTURED, Label
from ..importer import Draft, Importer
from ..mapped import keyed
from ..registry import register
from ..rows import Row
from ..source import Source

_PICTURE = "<image>"
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@register
class LLaVA(Importer):
    """The first request and its answer; ``--label`` says what they are, harmless if it is left out."""

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
            said[speaker] = said[speaker] or one.text("value").replace(_PICTURE, "").strip()
        if not said["human"]:
            raise row.bad("conversations", "has no request")
        if isinstance(row.values.get("image"), list):
            raise row.bad("image", "names several pictures, and a record has one")
        picture = source.picture(row, "image", row.text("image")) if row.has("image") else None
        label: Label = source.stated("label") or "harmless"
        yield Draft(
            row.word("id") if row.has("id") else row.key,
            said["human"],
            label,
            PICTURED if picture else "text",
            picture,
            response=said["gpt"] or None,
            category=source.stated("category") or "",
        )
