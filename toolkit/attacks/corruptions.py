"""What happens to pictures on their way: turned, cut, resized, compressed, noisy, blurred, brighter, paler.

Severities 1 to 5 of noise, JPEG, brightness and contrast are those of ImageNet-C (Hendrycks and Dietterich 2019,
arXiv 1903.12261), of blur its radii at a side of 224 pixels, of ``resize`` its pixelation with smooth interpolation; a
picture keeps its size. ``rotate`` and ``crop`` are ours.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from .options import LEVELS, Kind

_SIDE = 224  # pixels, for which radii are given

_DEGREES = (5.0, 10.0, 20.0, 45.0, 90.0)
_KEPT = (0.95, 0.9, 0.8, 0.7, 0.6)  # share of each side
_SHRUNK = (0.6, 0.5, 0.4, 0.3, 0.25)
_QUALITY = (25, 18, 15, 10, 7)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of the whole range
_RADIUS = (1.0, 2.0, 3.0, 4.0, 6.0)
_BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to HSV's value, of the whole range
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)


def corrupted(picture: Image.Image, kind: Kind, severity: int, draw: random.Random) -> bytes:
    """The file of a corrupted picture: a JPEG of ``jpeg``, else a PNG.

    Args:
        picture: in RGB.
        severity: from 1 to 5.
        draw: chooses what is left to chance.
    """
    made = CORRUPTIONS[kind](picture, severity - 1, draw)
    if isinstance(made, bytes):
        return made
    made.save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def _rotate(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    """Turned about its centre, either way; the corners get the mean colour."""
    mean = tuple(int(channel) for channel in np.asarray(picture).reshape(-1, 3).mean(0).round())
    angle = _DEGREES[at] * draw.choice((-1, 1))
    return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=mean)


def _crop(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    """A part of it somewhere, enlarged."""
    wide, high = (max(1, round(side * _KEPT[at])) for side in picture.size)
    left, top = draw.randint(0, picture.width - wide), draw.randint(0, picture.height - high)
    return picture.crop((left, top, left + wide, top + high)).resize(picture.size, Image.Resampling.BICUBIC)


def _resize(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    """Made smaller, and as large as before."""
    small = tuple(max(1, round(side * _SHRUNK[at])) for side in picture.size)
    return picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]


def _jpeg(picture: Image.Image, at: int, draw: random.Random) -> bytes:
    picture.save(held := io.BytesIO(), "JPEG", quality=_QUALITY[at])
    return held.getvalue()


def _noise(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    """Gaussian noise on every channel."""
    drawn = np.random.default_rng(draw.getrandbits(64)).normal(
        0, LEVELS * _NOISE[at], (picture.height, picture.width, 3)
    )
    return Image.fromarray(np.clip(np.rint(np.asarray(picture) + drawn), 0, LEVELS).astype(np.uint8))


def _blur(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(_RADIUS[at] * min(picture.size) / _SIDE))


def _brightness(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    added = round(LEVELS * _BRIGHTER[at])
    return Image.merge("HSV", (hue, saturation, value.point(lambda one: min(LEVELS, one + added)))).convert("RGB")


def _contrast(picture: Image.Image, at: int, draw: random.Random) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(_CONTRAST[at])


CORRUPTIONS: Mapping[Kind, Callable[[Image.Image, int, random.Random], Image.Image | bytes]] = {
    "rotate": _rotate,
    "crop": _crop,
    "resize": _resize,
    "jpeg": _jpeg,
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
}
