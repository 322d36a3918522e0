"""Pictures in every usual form, as RGB.

A path may end in a W3C media fragment that cuts a rectangle out of an atlas: ``noto.png#xywh=64,0,32,32``.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...adapters.errors import UsageError

Picture = Image.Image | np.ndarray | bytes | str | os.PathLike[str]

_FRAGMENT = re.compile(r"(?P<path>[^#]+)(?:#xywh=(?P<x>\d+),(?P<y>\d+),(?P<w>[1-9]\d*),(?P<h>[1-9]\d*))?")
_EMBEDDED = re.compile(r"data:image/[\w.+-]+;base64,(?P<data>.*)", re.DOTALL)
_FORMATS = "Use PNG, JPEG or WebP."


def as_picture(value: Picture) -> Image.Image:
    """A picture in RGB.

    Args:
        value: an image of Pillow, the bytes of a file, a path, a ``data:image/…;base64,`` URL, or an array
            [height, width] or [height, width, 3 or 4], of bytes or of floats from 0 to 1.

    Raises:
        UsageError: it is none of these, or cannot be read; nothing is downloaded.
    """
    if isinstance(value, Image.Image):
        return value if value.mode == "RGB" else value.convert("RGB")
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, (bytes, bytearray)):
        return _of_bytes(bytes(value))
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(
            f"A {type(value).__name__} is no picture.",
            "Pass a path, the bytes of a file, an image of Pillow or an array [height, width, 3].",
        )
    text = os.fspath(value)
    if embedded := _EMBEDDED.fullmatch(text):
        try:
            return _of_bytes(base64.b64decode(embedded["data"], validate=True))
        except binascii.Error:
            raise UsageError("A picture's data URL is not base64.", "Encode the bytes of the file.") from None
    if text.startswith(("http://", "https://")):
        raise UsageError(f"{text[:80]} is not on this machine.", "Nothing is downloaded; pass a path or bytes.")
    return open_picture(text)


def open_picture(text: str, folder: Path | None = None) -> Image.Image:
    """The picture, or the rectangle of one, that ``text`` names, relative to ``folder``; in RGB.

    Raises:
        UsageError: the file is missing or no picture, or the rectangle leaves it.
    """
    match = _FRAGMENT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no picture.", "Write PATH or PATH#xywh=X,Y,W,H.")
    path = (folder or Path()) / match["path"]
    try:
        picture = _read_picture(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        relative = "Picture paths in records are relative to the file of the records."
        raise UsageError(f"There is no picture {path}.", "Check the path." if folder is None else relative) from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a picture ({error}).", _FORMATS) from None
    if match["x"] is None:
        return picture
    x, y, width, height = (int(match[key]) for key in "xywh")
    if x + width > picture.width or y + height > picture.height:
        raise UsageError(f"{text!r} leaves the picture of {picture.width}x{picture.height}.", "Correct the rectangle.")
    return picture.crop((x, y, x + width, y + height))


@lru_cache(maxsize=32)
def _read_picture(path: Path, changed: int) -> Image.Image:  # a file that was changed since is read again
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _of_bytes(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UsageError(f"{len(data)} bytes cannot be read as a picture ({reason}).", _FORMATS) from None


def _of_array(array: np.ndarray) -> Image.Image:
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in array.shape:
        raise UsageError(
            f"An array of shape {list(array.shape)} is no picture.",
            "Its axes are [height, width] or [height, width, 3 or 4]; channels come last.",
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UsageError("A picture's floats leave the range from 0 to 1.", "Scale them, or pass uint8.")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UsageError(f"An array of {array.dtype} is no picture.", "Use uint8, or floats from 0 to 1.")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
