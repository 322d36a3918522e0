"""Pictures of any size as grids of patches (Qwen-VL): what a tower and a decoder must know about where patches lie.

A picture of ``t × h × w`` patches is written frame by frame, in a frame block by block: the ``merge × merge`` patches
that become one image token stand together. Grids are [pictures, 3] int64; patches of all pictures follow one another.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Grids = Int[np.ndarray, "pictures 3"]


def patch_places(grids: Grids, merge: int) -> Int[np.ndarray, "patches 2"]:
    """Row and column of each patch in its frame."""
    found = []
    for frames, rows, columns in grids.tolist():
        blocks = np.mgrid[:rows, :columns].reshape(2, rows // merge, merge, columns // merge, merge)
        found.append(np.tile(blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2), (frames, 1)))
    return np.concatenate(found).astype(np.int64)


def frame_ids(grids: Grids) -> Int[np.ndarray, " patches"]:
    """To which frame of which picture each patch belongs, counted through."""
    sizes = np.repeat(grids[:, 1] * grids[:, 2], grids[:, 0])
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


def window_ids(grids: Grids, merge: int, side: int) -> Int[np.ndarray, " patches"]:
    """To which window each patch belongs, counted through; a window is ``side × side`` image tokens of one frame."""
    keys = np.column_stack([frame_ids(grids), patch_places(grids, merge) // (merge * side)])
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def table_mix(
    grids: Grids, merge: int, side: int, *, corners: bool = True
) -> tuple[Int[np.ndarray, "patches 4"], Float[np.ndarray, "patches 4"]]:
    """Rows of a table of ``side × side`` positions, and their weights, that give each patch its position: bilinear
    interpolation, in single precision as the model computes it.

    Args:
        corners: the first and last patches lie on those of the table; otherwise centres of patches are spread evenly.
    """
    places = patch_places(grids, merge).astype(np.float32)
    sizes = np.repeat(grids[:, 1:], grids.prod(axis=1), axis=0)
    if corners:
        at = places * np.float32(side - 1) / np.maximum(sizes - 1, 1).astype(np.float32)
    else:
        half = np.float32(0.5)
        at = (places + half) * np.float32(side) / sizes.astype(np.float32) - half
    low = np.floor(at)
    taps = np.stack([low, low + 1], axis=-1).clip(0, side - 1).astype(np.int64)
    shares = 1 - np.abs((at - low)[..., None] - np.arange(2, dtype=np.float32))
    rows = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    weights = shares[:, 0, :, None] * shares[:, 1, None, :]
    return rows.reshape(-1, 4), weights.reshape(-1, 4).astype(np.float32)


def block_order(grids: Grids, merge: int) -> Int[np.ndarray, " patches"]:
    """Patches that come row by row in the order of blocks of ``merge × merge``."""
    found, start = [], 0
    for frames, rows, columns in grids.tolist():
        order = np.arange(frames * rows * columns).reshape(frames, rows // merge, merge, columns // merge, merge)
        found.append(start + order.transpose(0, 1, 3, 2, 4).reshape(-1))
        start += order.size
    return np.concatenate(found).astype(np.int64)


def rotary_positions(
    vision_mask: Bool[np.ndarray, "batch seq"],
    attention_mask: Int[np.ndarray, "batch seq"],
    grids: Grids | None,
    merge: int,
) -> Int[np.ndarray, "3 batch seq"]:
    """Positions in time, height and width: equal for text; a picture counts its own grid on from where it begins, and
    the text after it goes on behind its longest side. 0 at padding."""
    positions = np.zeros((3, *vision_mask.shape), np.int64)
    pictures = iter(() if grids is None else grids.tolist())
    for row, real in enumerate(attention_mask.astype(bool)):
        image, found, start, at = vision_mask[row, real], [], 0, 0
        while at < len(image):
            frames, rows, columns = next(pictures) if image[at] else (1, merge, merge)
            grid = np.mgrid[:frames, : rows // merge, : columns // merge].reshape(3, -1)
            found.append(start + grid)
            at += grid.shape[1]
            start += max(rows, columns) // merge
        positions[:, row, real] = np.concatenate(found, axis=1)
    return positions


def window_order(grids: Grids, merge: int, side: int) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " patches"]]:
    """Image tokens sorted by window, and to which window each patch then belongs, counted through."""
    windows = window_ids(grids, merge, side)[:: merge**2]
    order = np.argsort(windows, kind="stable")
    return order, np.repeat(windows[order], merge**2)
