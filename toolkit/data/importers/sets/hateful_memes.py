"""Hateful Memes (https://arxiv.org/abs/2005.04790): memes of which some are hate, by picture and words together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_PROMPT = "What does this meme say?"
_LABELS = {"1": "harmful", "0": "harmless"}


@register
class HatefulMemes(Importer):
    """A part with labels. It has no requests: every meme gets the same one, ``--prompt``."""

    name = "hateful-memes"
    title = "Hateful Memes"
    reads = "`dev_seen.jsonl` or another part, `img/`"
    licence = "the licence of Meta's challenge: research only, no redistribution"
    carriers = ("image",)
    metric = "AUROC and accuracy of telling hateful memes"
    files = ("dev_seen.jsonl", "dev.jsonl", "test_seen.jsonl", "train.jsonl")
    distinct = False
    takes = ("images", "prompt")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.lines(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        yield Draft(
            row.word("id"),
            source.stated("prompt") or _PROMPT,
            row.one_of("label", _LABELS),
            "image",
            source.picture(row, "img", row.text("img")),
            field="img",
            category="hate" if row.word("label") == "1" else "",
        )
