"""XSTest (https://github.com/paul-rottger/xstest): harmless requests that sound harmful, and harmful contrasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import LABELS, Source

_CONTRAST = "contrast_"  # before the types of harmful requests


@register
class XSTest(Importer):
    """A version without labels tells them by its types; the second calls its ids ``id_v2``."""

    name = "xstest"
    title = "XSTest"
    reads = "`xstest_prompts.csv` or `xstest_v2_prompts.csv`"
    licence = "CC BY 4.0"
    carriers = ("text",)
    metric = "full and partial refusals of safe and of unsafe prompts, by people or a judge"
    files = ("xstest_prompts.csv", "xstest_v2_prompts.csv", "data/xstest_prompts.csv", "data/xstest_v2_prompts.csv")

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("prompt", "type"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        kind = row.text("type")
        label = LABELS["unsafe" if kind.startswith(_CONTRAST) else "safe"]
        if row.has("label"):
            label = row.one_of("label", {name: LABELS[name] for name in ("safe", "unsafe")})
        yield Draft(
            row.word("id_v2" if "id_v2" in row.values else "id"),
            row.text("prompt"),
            label,
            "text",
            category=kind.removeprefix(_CONTRAST),
            tags=("look-alike",) if label == "harmless" else (),
        )
