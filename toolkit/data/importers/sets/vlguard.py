"""VLGuard (https://github.com/ys-zong/VLGuard): unsafe pictures, and safe ones with a safe and an unsafe request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ...record import Carrier, Label
from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

# Kind of request → its label, and how the harm arrives.
_REQUESTS: dict[str, tuple[Label, Carrier]] = {
    "instruction": ("harmful", "image"),
    "unsafe_instruction": ("harmful", "text+image"),
    "safe_instruction": ("harmless", "text+image"),
}
_FLAGS = {"true": True, "false": False}


@register
class VLGuard(Importer):
    """The test set; the training set where ``train.json`` is named or the only one.

    Its long answers are left out: no model gives them word for word.
    """

    name = "vlguard"
    title = "VLGuard"
    reads = "`test.json`, `test/`, or `train.json`, `train/`; also in `data/`"
    licence = "on request from its authors; the pictures keep the licences of their sources"
    carriers = ("image", "text+image")
    metric = "attack success rate by string match and Llama Guard; helpfulness on safe pairs by a judge"
    files = ("test.json", "data/test.json", "train.json", "data/train.json")
    distinct = False
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.objects(name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        named = f"{row.key}/{row.word('id')}"  # in the training set an id comes twice
        safe = row.one_of("safe", _FLAGS)
        path = source.beside(PurePosixPath(row.file).with_suffix(""), row.text("image"))
        picture = source.picture(row, "image", path)
        category = "" if safe else row.text("harmful_category")
        for number, request in enumerate(row.items("instr-resp", dict)):
            one = row.at(f"instr-resp {number}", request)
            kind = next((kind for kind in _REQUESTS if one.has(kind) and (kind != "instruction") == safe), None)
            if kind is None:
                raise one.bad("", f"has no request about a{' safe' if safe else 'n unsafe'} picture")
            label, carrier = _REQUESTS[kind]
            yield Draft(f"{named}/{number}", one.text(kind), label, carrier, picture, category=category, group=named)
