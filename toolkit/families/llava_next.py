"""LLaVA-NeXT and LLaVA-OneVision: ``LlavaNextForConditionalGeneration``, ``LlavaOnevisionForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            CLIP- or SigLIP-like tower
    ``model.multi_modal_projector``   two linear layers
    ``model.image_newline``           a vector that ends each row of a picture
    ``model.language_model``          any full-attention causal decoder
    ``lm_head``

A picture becomes one small tile of the whole and a grid of tiles of its parts. The decoder reads the whole, then the
grid row by row without its padding, each row ended by a newline; OneVision shrinks a large grid bilinearly first. What
is read depends on the picture's size, so the graph takes it as inputs: each feature that the decoder reads is a sum of
four of the projector's, ``packing_index`` [features, 4] with ``packing_weight`` [features, 4]; the index just past the
projector's tokens is the newline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.errors import UsageError
from .family import Arrays, Family, GraphInput
from .llava import require_selection, selected_states
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor

_CORNERS = 4


@register
class LlavaNext(Family):
    """Tiles, projector, packing."""

    name, title = "llava_next", "LLaVA-NeXT"
    taps = ("vision", "projector")
    repacks = True

    def check(self, config: Any) -> None:
        super().check(config)
        require_selection(config)

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        size = config.vision_config.image_size
        return (
            GraphInput("pixel_values", "float32", ("tiles", 3, size, size)),
            GraphInput("packing_index", "int64", ("features", _CORNERS)),
            GraphInput("packing_weight", "float32", ("features", _CORNERS)),
        )

    def vision_example(self, config: Any) -> Arrays:
        size = config.vision_config.image_size
        rows, columns = next(pair for pair in config.image_grid_pinpoints if max(pair) > size)
        shape = (1, 1 + rows * columns // size**2, 3, size, size)
        return self.vision_feeds(
            config, {"pixel_values": np.ones(shape, np.float32), "image_sizes": np.array([[rows, columns]])}
        )

    def vision(
        self, model: Any, pixel_values: Tensor, packing_index: Tensor, packing_weight: Tensor
    ) -> tuple[Tensor, ...]:
        import torch

        vision = selected_states(model, pixel_values)
        projected = model.model.multi_modal_projector(vision)
        rows = torch.cat([projected.flatten(0, 1), model.model.image_newline[None].to(projected.dtype)])
        packed = (rows[packing_index] * packing_weight[..., None].to(rows.dtype)).sum(1)
        return packed, vision, projected

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        pixels, sizes = pictures["pixel_values"], pictures["image_sizes"]
        tile, side = config.vision_config.image_size, _side(config)
        whole = self.only_whole(pictures, len(sizes))
        tiles, parts, start = [], [], 0
        for pixel, size, small in zip(pixels, sizes.tolist(), whole, strict=True):
            best = (0, 0) if small else best_resolution(size, config.image_grid_pinpoints)
            rows, columns = (edge // tile for edge in best)
            count = 1 + rows * columns
            tiles.append(pixel[:count])
            parts.append(self.packed(config, start, side, rows, columns, size))
            start += count * side**2
        index = np.concatenate([part[0] for part in parts])
        weight = np.concatenate([part[1] for part in parts])
        index[index == NEWLINE] = start
        return {"pixel_values": np.concatenate(tiles), "packing_index": index, "packing_weight": weight}

    def only_whole(self, pictures: Mapping[str, np.ndarray], count: int) -> Sequence[bool]:
        """For each picture, whether only the small tile of the whole is read."""
        return [False] * count

    def packed(
        self, config: Any, start: int, side: int, rows: int, columns: int, size: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Packing of one picture whose tokens start at ``start``: the whole, then a grid of rows by columns tiles."""
        base = start + np.arange(side**2)
        if not rows * columns:
            return _plain(np.append(base, NEWLINE))
        grid = unpadded(grid_tokens(start + side**2, side, rows, columns), size)
        ended = np.concatenate([grid, np.full((len(grid), 1), NEWLINE)], axis=1)
        return _plain(np.concatenate([base, ended.reshape(-1)]))


@register
class LlavaOnevision(LlavaNext):
    """LLaVA-NeXT with shrunken features; several pictures in one prompt are read without tiles."""

    name, title = "llava_onevision", "LLaVA-OneVision"

    def check(self, config: Any) -> None:
        super().check(config)
        if not str(config.vision_aspect_ratio).startswith("anyres_max_"):
            raise UsageError(
                f"vision_aspect_ratio is {config.vision_aspect_ratio!r}.",
                "Only 'anyres_max_N' is known; check config.json.",
            )

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        return [list(row) for row in pictures if row] or None

    def only_whole(self, pictures: Mapping[str, np.ndarray], count: int) -> Sequence[bool]:
        if "batch_num_images" not in pictures:
            return [False] * count
        return [number > 1 for number in pictures["batch_num_images"].tolist() for _ in range(number)]

    def packed(
        self, config: Any, start: int, side: int, rows: int, columns: int, size: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        if not rows * columns:
            return super().packed(config, start, side, rows, columns, size)
        grid = unpadded(grid_tokens(start + side**2, side, rows, columns), size)
        height, width = grid.shape
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(height * width / (most * side**2))
        if ratio <= 1.1:
            return super().packed(config, start, side, rows, columns, size)
        index, weight = shrunk(grid, int(height // ratio), int(width // ratio))
        newline_index, newline_weight = _plain(np.full(len(index), NEWLINE))
        index = np.concatenate([index, newline_index[:, None]], axis=1).reshape(-1, _CORNERS)
        weight = np.concatenate([weight, newline_weight[:, None]], axis=1).reshape(-1, _CORNERS)
        base_index, base_weight = _plain(start + np.arange(side**2))
        return np.concatenate([base_index, index]), np.concatenate([base_weight, weight])


@register
class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT; videos are not read."""

    name, title = "llava_next_video", "LLaVA-NeXT-Video"


NEWLINE = -1  # stands for the newline's index until the number of tokens is known


def best_resolution(size: Sequence[int], choices: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The choice (height, width) that keeps most of a picture's pixels, and of those the one that wastes least."""

    def quality(choice: Sequence[int]) -> tuple[int, int]:
        scale = min(choice[1] / size[1], choice[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - choice[0] * choice[1]

    height, width = max(choices, key=quality)
    return int(height), int(width)


def grid_tokens(start: int, side: int, rows: int, columns: int) -> np.ndarray:
    """Tokens of a grid of tiles as one picture [rows · side, columns · side]; tiles follow each other."""
    tokens = start + np.arange(rows * columns * side**2).reshape(rows, columns, side, side)
    return tokens.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def unpadded(grid: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The part of ``grid`` that a picture of (height, width) fills, which was scaled to fit and centred."""
    height, width = grid.shape
    if size[1] / size[0] > width / height:
        margin = (height - int(round(size[0] * (width / size[1]), 7))) // 2
        return grid[margin : height - margin]
    margin = (width - int(round(size[1] * (height / size[0]), 7))) // 2
    return grid[:, margin : width - margin]


def shrunk(grid: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resizing as four tokens and weights for each new one: two arrays [height, width, 4].

    Centres of pixels map to centres, and what lies outside the border reads the border. In single precision, as the
    model: on large grids the last digits of a place show.
    """

    def along(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        half, scale = np.float32(0.5), np.float32(old) / np.float32(new)
        place = np.maximum((np.arange(new, dtype=np.float32) + half) * scale - half, np.float32(0))
        low = np.minimum(place.astype(np.int64), old - 1)
        return low, np.minimum(low + 1, old - 1), place - low.astype(np.float32)

    top, bottom, down = along(grid.shape[0], height)
    left, right, across = along(grid.shape[1], width)
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    index = np.stack([grid[np.ix_(*corner)] for corner in corners])
    vertical, horizontal = (1 - down, down), (1 - across, across)
    weight = np.stack([np.outer(one, other) for one in vertical for other in horizontal])
    return index.transpose(1, 2, 0), weight.transpose(1, 2, 0).astype(np.float32)


def _plain(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packing that takes tokens as they are."""
    index = np.repeat(tokens[:, None], _CORNERS, axis=1)
    return index, np.tile(np.array([1, 0, 0, 0], np.float32), (len(tokens), 1))


def _side(config: Any) -> int:
    return int(config.vision_config.image_size) // int(config.vision_config.patch_size)
