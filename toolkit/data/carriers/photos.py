"""Photos that have nothing to do with a request."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from ....adapters.errors import UsageError
from ....adapters.extras import missing
from ..pictures import open_picture
from .drawing import Photo

SAMPLES = "scikit-learn's sample photos china.jpg and flower.jpg (CC BY, see its datasets/images/README.txt)"
_LEAST = 0.5  # of the shorter side, that a cut has
_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


def photos_of(folder: Path | None) -> tuple[Photo, str]:
    """What gives photos, and where they are from.

    Args:
        folder: of the user's; None for the two that scikit-learn carries.

    Raises:
        UsageError: there is no picture in the folder.
        MissingExtra: scikit-learn is not installed.
    """
    if folder is None:
        return _samples(), SAMPLES
    files = sorted(one for one in folder.iterdir() if one.suffix.lower() in _ENDINGS) if folder.is_dir() else []
    if not files:
        raise UsageError(
            f"There is no picture in {folder}.", f"Name a folder with {', '.join(sorted(_ENDINGS))} files."
        )
    return (lambda draw, side: _cut(open_picture(draw.choice(files).name, folder), draw, side)), str(folder.name)


def _samples() -> Photo:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise missing("sklearn", "A photo, unless you give some with --photos,") from None
    found = [Image.fromarray(one) for one in load_sample_images().images]
    return lambda draw, side: _cut(draw.choice(found), draw, side)


def _cut(picture: Image.Image, draw: random.Random, side: int) -> Image.Image:
    """A square of a photo, somewhere, half as wide as its shorter side or wider, perhaps mirrored."""
    wide = round(min(picture.size) * draw.uniform(_LEAST, 1))
    left, top = (draw.randint(0, one - wide) for one in picture.size)
    found = picture.crop((left, top, left + wide, top + wide)).resize((side, side), Image.Resampling.LANCZOS)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else found
