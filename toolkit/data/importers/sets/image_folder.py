"""Folders of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ...record import PICTURED
from ..importer import Draft, Importer
from ..registry import register
from ..rows import BadRow, Row
from ..source import LABELS, Source

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@register
class ImageFolder(Importer):
    """All get the request ``--prompt``. A folder ``harmful`` or ``safe`` is a label, any other one a category."""

    name = "images"
    title = "Folder of pictures"
    reads = "`LABEL/CATEGORY/*.jpg`, `CATEGORY/*.jpg` or `*.jpg`; other formats of pictures too"
    licence = "yours"
    files = ("*.*", "*/*.*", "*/*/*.*")
    distinct = False
    takes = ("label", "category", "prompt")

    def rows(self, source: Source) -> Iterator[Row]:
        if source.prompt is None:
            raise BadRow(source.folder.name, "", "prompt", "the pictures have no request", "Give them one: --prompt.")
        for name in source.every(*self.files):
            if PurePosixPath(name).suffix.lower() in _SUFFIXES:
                yield Row(name, "", {"image": name, "prompt": source.stated("prompt")}, key=name)

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        folders = PurePosixPath(row.file).parts[:-1]
        labels = [LABELS[one.casefold()] for one in folders if one.casefold() in LABELS]
        label = labels[0] if labels else source.stated("label")
        if label is None:
            raise row.bad("", "its folder is neither harmful nor harmless", "Rename the folder, or pass --label.")
        category = "/".join(one for one in folders if one.casefold() not in LABELS) or source.stated("category") or ""
        picture = source.picture(row, "", row.file, source.folder)
        yield Draft(row.key, row.text("prompt"), label, PICTURED, picture, "", category=category)
