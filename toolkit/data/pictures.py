"""Pictures in every usual form, as RGB: the one place where a picture's bytes are decoded.

Who sends a picture is not trusted. Its format is known by its content and must be one of :data:`FORMATS`; its size is
looked at before its pixels are. It is turned as its EXIF orientation says, what is transparent is laid over white (as
transformers' ``convert_to_rgb`` does), and grey values of 16 bits become their upper 8 (as Pillow does with colours).

A path may end in a W3C media fragment that cuts a rectangle out of an atlas: ``noto.png#xywh=64,0,32,32``. Any other
``#`` belongs to the file's name.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import warnings
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from ...adapters.errors import Unread, UsageError

if TYPE_CHECKING:
    import numpy as np

Picture: TypeAlias = "Image.Image | np.ndarray | bytes | str | os.PathLike[str]"

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # as Pillow calls them
MAX_PIXELS = 50_000_000  # of a picture, which take 400 MB while they are converted
PIXELS_VARIABLE = "SAFETYKIT_MAX_PIXELS"  # of the environment: another limit
MAX_RATIO = 100  # of a picture's sides; processors enlarge the shorter one to hundreds of pixels
MAX_BYTES = 2**28  # of a file

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # brands of files
_UNITS = r"\d{1,9}"
_FRAGMENT = re.compile(
    rf"(?P<path>(?:(?!#xywh=).)+)(?:#xywh=(?P<x>{_UNITS}),(?P<y>{_UNITS}),(?P<w>(?!0){_UNITS}),(?P<h>(?!0){_UNITS}))?",
    re.DOTALL,
)
_EMBEDDED = re.compile(r"data:image/[\w.+-]+;base64,(?P<data>.*)", re.DOTALL)
_ADVICE = f"Use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
_CHANNELS = "Its axes are [height, width] or [height, width, 3 or 4]; channels come last."


def as_picture(value: Picture) -> Image.Image:
    """A picture in RGB.

    Args:
        value: an image of Pillow, the bytes of a file, a path, a ``data:image/…;base64,`` URL, or an array
            [height, width] or [height, width, 3 or 4], of bytes or of floats from 0 to 1.

    Raises:
        UsageError: it is none of these, cannot be read, or is too large or too narrow; nothing is downloaded.
    """
    import numpy as np

    if isinstance(value, Image.Image):
        require_size(*value.size, "A picture")
        value = ImageOps.exif_transpose(value) if value.getexif() else value
        return value if _is_rgb(value) else in_rgb(value, "A picture")
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


def is_blank(picture: Image.Image) -> bool:
    """Whether all pixels are alike: nobody can know such a picture from another."""
    return all(low == high for low, high in picture.convert("RGB").getextrema())  # type: ignore[misc]


def as_url(picture: Image.Image) -> str:
    """A picture as a PNG in a data URL, which :func:`as_picture` reads again to the pixel."""
    picture.save(held := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def picture_file(text: str, folder: Path | None = None) -> Path:
    """The file that ``text``, a path with or without a rectangle, names relative to ``folder``.

    Raises:
        UsageError: it names none.
    """
    return (folder or Path()) / _parsed(text)["path"]


def open_picture(text: str, folder: Path | None = None) -> Image.Image:
    """The picture, or the rectangle of one, that ``text`` names, relative to ``folder``; in RGB.

    Raises:
        UsageError: the file is missing, no plain file, no picture, too large or too narrow; or the rectangle leaves it.
    """
    match = _parsed(text)
    path = (folder or Path()) / match["path"]
    try:
        picture = _read_picture(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        relative = "Picture paths in records are relative to the file of the records."
        raise UsageError(f"There is no picture {path}.", "Check the path." if folder is None else relative) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a picture ({error}).", _ADVICE) from None
    if match["x"] is None:
        return picture
    x, y, width, height = (int(match[key]) for key in "xywh")
    if x + width > picture.width or y + height > picture.height:
        raise UsageError(f"{text!r} leaves the picture of {picture.width}x{picture.height}.", "Correct the rectangle.")
    return picture.crop((x, y, x + width, y + height))


def format_of(data: bytes) -> str:
    """Which of :data:`FORMATS` the bytes of a file are, in small letters; their pixels are decoded once.

    Raises:
        UsageError: as of any picture.
    """
    _of_bytes(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return str(picture.format).lower()


def _parsed(text: str) -> re.Match[str]:
    """A path and its rectangle.

    Raises:
        UsageError: it is none.
    """
    match = _FRAGMENT.fullmatch(text)
    if match is None or "\0" in text:
        raise UsageError(f"{text!r} names no picture.", "Write PATH or PATH#xywh=X,Y,W,H.")
    return match


def require_size(width: int, height: int, what: str) -> None:
    """Refuse a picture that holds nothing, or that would take too much memory; ``what`` names it.

    Raises:
        UsageError: with the limit.
    """
    if not width or not height:
        raise UsageError(f"{what} has no pixels: it is {width}x{height}.", "Leave it out.")
    if width * height > (limit := max_pixels()):
        raise UsageError(
            f"{what} has {width}x{height} pixels, and at most {limit} are read.",
            f"Make it smaller, or raise the limit: {PIXELS_VARIABLE}={width * height}.",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UsageError(
            f"{what} is too narrow: its sides of {width}x{height} are more than 1:{MAX_RATIO}.", "Crop or pad it."
        )


def max_pixels() -> int:
    """The limit in force: :data:`MAX_PIXELS`, or what the environment says.

    Raises:
        UsageError: it says no number, or more than Pillow decodes.
    """
    said, most = os.environ.get(PIXELS_VARIABLE, str(MAX_PIXELS)), 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if not re.fullmatch(r"[1-9]\d{0,9}", said, re.ASCII) or int(said) > most:
        raise UsageError(f"{PIXELS_VARIABLE} is {said[:40]!r}.", f"Set it to a number of pixels up to {most}.")
    return int(said)


@lru_cache(maxsize=32)
def _read_picture(path: Path, changed: int) -> Image.Image:  # a file that was changed since is read again
    _require_plain(path.stat(), path)
    with open(path, "rb", opener=_open_at_once) as file:
        _require_plain(os.fstat(file.fileno()), path)
        return _decoded(file, str(path))


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe that took its place does not make us wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_plain(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is a folder, a pipe or a device, and no picture.", "Pass a plain file.")
    if found.st_size > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB.", "Save the picture compressed, or smaller.")


def _of_bytes(data: bytes) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise UsageError(f"A picture is larger than {MAX_BYTES >> 20} MiB.", "Save it compressed, or smaller.")
    return _decoded(io.BytesIO(data), f"A file of {len(data)} bytes")


def _decoded(file: IO[bytes], what: str) -> Image.Image:
    """The pixels of a file whose size allows it, upright and in RGB."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            require_size(*picture.size, what)
            # A JPEG may hold further views of the same scene (MPO), as many phones write them.
            if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
                warnings.warn(f"{what} has {frames} frames or pages, of which only the first is read.", Unread, 2)
                picture.seek(0)
            ImageOps.exif_transpose(picture, in_place=True)
            return in_rgb(picture, what)
    except UsageError:
        raise
    except Image.DecompressionBombError:
        raise UsageError(
            f"{what} has many more pixels than are read, at most {max_pixels()}.", "Make it smaller."
        ) from None
    except Exception as error:  # decoders raise whatever the bytes lead them to
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            file.seek(0)
            reason = _unknown(file.read(16))
        raise UsageError(f"{what} cannot be read as a picture ({reason}).", _ADVICE) from None


def _unknown(head: bytes) -> str:
    """What a file is that is no picture here, by its first bytes: HEIC, as phones write it, or a video (MP4 or
    QuickTime, Matroska or WebM, AVI)."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        return "HEIC, which is not read"
    video = head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:11] == b"AVI")
    return "a video: pass its frames as pictures" if video else "unknown format"


def _is_rgb(picture: Image.Image) -> bool:
    return picture.mode == "RGB" and "transparency" not in picture.info


def in_rgb(picture: Image.Image, what: str) -> Image.Image:
    """A picture of any of Pillow's modes in RGB; ``what`` names it.

    Raises:
        UsageError: its numbers do not say what is white.
    """
    import numpy as np

    if picture.mode in ("I", "F"):
        raise UsageError(
            f"{what} holds grey values of {'floats' if picture.mode == 'F' else '32 bits'}, and not what is white.",
            "Save it with 8 or 16 bits, or pass an array of floats from 0 to 1.",
        )
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "La":  # which Pillow makes no colours of
        picture = picture.convert("LA")
    if "transparency" in picture.info or {"A", "a"} & set(picture.getbands()):
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert("RGB")


def _of_array(array: np.ndarray) -> Image.Image:
    import numpy as np

    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in array.shape:
        raise UsageError(f"An array of shape {list(array.shape)} is no picture.", _CHANNELS)
    require_size(array.shape[1], array.shape[0], "A picture")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UsageError("A picture's floats leave the range from 0 to 1.", "Scale them, or pass uint8.")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UsageError(f"An array of {array.dtype} is no picture.", "Use uint8, or floats from 0 to 1.")
    return in_rgb(Image.fromarray(np.ascontiguousarray(array)), "An array")
