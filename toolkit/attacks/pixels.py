"""How a processor makes numbers of a picture's pixels, found out by asking it; so gradients can go the way back.

An attack lives in a file of 8 bits that somebody uploads, and the model reads numbers that a processor made of it. At
one size of picture, the processor's own, nothing is resized or cut: each number is then one channel of one pixel, times
a scale, plus an offset (or constant, where the processor pads). Which one is read off three pictures whose pixels spell
their own places, scale and offset off a black and a white one; a picture of noise must then come out as predicted. So
patches in any order (Qwen2-VL) are known as well as plain planes, and a processor that mixes pixels at every size, such
as one that lays a smaller whole beside tiles of a larger one, is refused and not guessed at.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from ...adapters.errors import SafetykitError, UsageError
from ..model.inputs import InputProcessor
from ..model.requests import Request

PIXELS, _GRID = "pixel_values", "image_grid_thw"
LEVELS = 255  # the largest value of a channel
_CLOSE = 1e-3  # of a level: what single precision leaves of a prediction
_PROBE = 224  # pixels along the side of a picture that stands for any

Picture8 = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Pixels:
    """What a processor makes of pictures of one size: ``values = scale · picture.flat[source] + offset``.

    Attributes:
        size: height and width of the pictures, in pixels.
        source: for each number the place of its channel among height · width · 3; 0 where it is constant.
        scale, offset: as wide as ``source``; a scale of 0 is a constant.
    """

    size: tuple[int, int]
    source: Int[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]
    offset: Float[np.ndarray, "..."]

    def values(self, picture: Picture8) -> Float[np.ndarray, "..."]:
        """What the processor makes of a picture of this size."""
        seen: Float[np.ndarray, "..."] = self.scale * picture.reshape(-1)[self.source].astype(np.float32) + self.offset
        return seen

    def seen(self, values: Float[np.ndarray, "..."]) -> Picture8:
        """The picture of this size of which the processor makes ``values``, rounded to 8 bits."""
        moved = self.scale != 0
        found = np.zeros(3 * self.size[0] * self.size[1], dtype=np.float32)
        found[self.source[moved]] = (values[moved] - self.offset[moved]) / self.scale[moved]
        return np.clip(np.rint(found), 0, LEVELS).astype(np.uint8).reshape(*self.size, 3)


class PixelMaps:
    """The :class:`Pixels` of one processor, by the size of picture that it takes as it is."""

    def __init__(self, inputs: InputProcessor) -> None:
        self._inputs = inputs
        self._known: dict[tuple[int, int], Pixels] = {}

    def start(self, picture: Image.Image) -> tuple[Picture8, Pixels]:
        """A picture as the model sees it: resized and cut as the processor does, as pixels of 8 bits.

        One that the processor would cut into several tiles is resized to one of them.

        Raises:
            UsageError: the processor mixes pixels at its own size.
        """
        made = self._made(picture)
        size = self._own_size(made)
        if size not in self._known:
            self._known[size] = self._probed(size)
        pixels = self._known[size]
        if made[PIXELS].shape != pixels.source.shape:  # as where large pictures are cut into tiles
            made = self._made(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return pixels.seen(made[PIXELS]), pixels

    def require(self) -> None:
        """Refuse a processor through which no gradient can go, before weights are loaded.

        Raises:
            UsageError: as :meth:`start`.
        """
        self.start(grey(_PROBE))

    def _made(self, picture: Image.Image) -> Mapping[str, np.ndarray]:
        return self._inputs.prepare([Request("?", picture)]).pictures

    def _own_size(self, made: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Height and width of what the processor has made of a picture."""
        values = made.get(PIXELS)
        if values is None:
            raise self._refusal("it gives no pixel_values")
        if _GRID in made:
            patch = int(self._inputs.processor.image_processor.patch_size)
            return int(made[_GRID][0][1]) * patch, int(made[_GRID][0][2]) * patch
        if values.ndim >= 4 and values.shape[-3] == 3:
            return values.shape[-2], values.shape[-1]
        raise self._refusal(f"its numbers have the shape {list(values.shape)}, in which no height and width is known")

    def _probed(self, size: tuple[int, int]) -> Pixels:
        height, width = size
        places = np.arange(height * width * 3)

        def run(flat: Any) -> np.ndarray:
            picture = np.broadcast_to(np.asarray(flat, dtype=np.uint8), (height * width * 3,)).reshape(height, width, 3)
            try:
                made = self._made(Image.fromarray(picture))
            except SafetykitError as error:
                raise self._refusal(f"it does not take a picture of its own size, {width}x{height}") from error
            if self._own_size(made) != size:
                raise self._refusal(f"it resizes a picture of its own size, {width}x{height}")
            return made[PIXELS]

        offset, white = run(0), run(LEVELS)
        scale = (white - offset) / LEVELS
        moved = scale != 0
        source = np.zeros(offset.shape, dtype=np.int64)
        for digit in range(3):
            spelt = run(places >> (8 * digit) & 255)[moved]
            source[moved] += np.rint((spelt - offset[moved]) / scale[moved]).astype(np.int64) << (8 * digit)
        mixed = self._refusal(f"it mixes pixels also of a picture of its own size, {width}x{height}")
        if not np.array_equal(np.unique(source[moved]), places):
            raise mixed
        pixels = Pixels(size, source, scale.astype(np.float32), offset.astype(np.float32))
        noise = np.random.default_rng(0).integers(0, LEVELS + 1, (height, width, 3), dtype=np.uint8)
        if np.abs(pixels.values(noise) - run(noise.reshape(-1))).max() > _CLOSE * np.abs(scale).max():
            raise mixed
        return pixels

    def _refusal(self, reason: str) -> UsageError:
        kind = type(self._inputs.processor.image_processor).__name__
        return UsageError(
            f"No gradient can go through the picture processor of this model ({self._inputs.config.model_type}, "
            f"{kind}): {reason}.",
            "Attack a model whose processor takes a picture of its own size as it is, such as LLaVA-1.5 or Qwen2-VL, "
            "or make the pictures elsewhere and evaluate them as records.",
        )


def grey(side: int) -> Image.Image:
    """A square that shows nothing."""
    return Image.new("RGB", (side, side), (127, 127, 127))
