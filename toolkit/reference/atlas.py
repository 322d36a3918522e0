"""Where a thing's picture lies: atlas geometry, media fragments, and reading tiles. Needs Pillow and NumPy only."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 48  # pixels
COLUMNS = 21
# The renderings that training sees. `noto-v1` lacks the newer emoji.
SEEN_SETS = ("noto", "fluent", "fluent-flat", "twemoji", "noto-v1")
SEEN_FONTS = ("type-slab", "type-comic", "type-narrow", "type-script")
# Kept for the test split: no stage of training reads them.
UNSEEN_SETS = ("emojione",)
UNSEEN_FONTS = ("type-hand",)

_FRAGMENT = re.compile(r"^(?P<file>[^#]+)#xywh=(?P<x>\d+),(?P<y>\d+),(?P<w>\d+),(?P<h>\d+)$")


def data_folder() -> Path:
    """The folder that holds the atlases and `records/`."""
    return Path(__file__).parent / "data"


def box_of(index: int) -> tuple[int, int, int, int]:
    """(x, y, width, height) in pixels of tile `index`."""
    return index % COLUMNS * TILE, index // COLUMNS * TILE, TILE, TILE


def reference(atlas: str, index: int) -> str:
    """The `image` field of a record: a path relative to `data/records/` with a W3C media fragment."""
    return f"../{atlas}.png#xywh={','.join(map(str, box_of(index)))}"


def parse(image: str) -> tuple[str, tuple[int, int, int, int]]:
    """Split an `image` field into its file and its box; ValueError if it has another shape."""
    match = _FRAGMENT.match(image)
    if not match:
        raise ValueError(f"not an atlas reference: {image!r} (expected FILE#xywh=X,Y,W,H)")
    return match["file"], (int(match["x"]), int(match["y"]), int(match["w"]), int(match["h"]))


@cache
def tiles(atlas: str) -> np.ndarray:
    """All tiles of one atlas: uint8 [tiles, 48, 48, 3], row by row; blank ones are plain white."""
    with Image.open(data_folder() / f"{atlas}.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    cut = pixels[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3)
    return np.ascontiguousarray(cut.swapaxes(1, 2)).reshape(-1, TILE, TILE, 3)


@cache
def shown(atlas: str) -> frozenset[int]:
    """The indices of the things this atlas shows (those whose tile is not blank)."""
    return frozenset(np.flatnonzero((tiles(atlas) < 255).any(axis=(1, 2, 3))).tolist())
