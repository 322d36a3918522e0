"""Odd pictures, each read right or refused: ``python bench/pictures.py -o OUT``.

Files of kinds that people send are written and read through both doors: safetykit's, and that of ``run_ort.py`` beside
an export. ``right`` says that both give the pixels that are wanted: those of transformers' ``load_image``, or those
named in the table where that loses something. Its own difference from them stands beside, in steps of 255. A refusal is
safetykit's own sentence.

Writes OUT/pictures.json and OUT/pictures.md. Ends with 1 if a picture is read wrong, or is not refused by name.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from safetykit.adapters.errors import UsageError
from safetykit.bench.skeleton import arguments, run, write_results, write_table
from safetykit.export.layouts import run_ort
from safetykit.toolkit.data.pictures import as_picture

RIGHT, WRONG, REFUSED = "right", "WRONG", "refused"
SIZE = (40, 30)
_ORIENTATION = 274  # of EXIF

Wanted = Callable[[bytes], Image.Image]


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        wanted: what is to be read of it; None for what ``load_image`` reads.
        why: in the place of that, and why.
        refused: words of the refusal; None for what is read.
    """

    data: bytes
    wanted: Wanted | None = None
    why: str = ""
    refused: str | None = None


def photo() -> Image.Image:
    """A picture whose places and colours can all be told apart."""
    across, down = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    noise = np.random.default_rng(0).integers(0, 60, (*SIZE[::-1], 3))
    return Image.fromarray(np.clip(np.dstack([across, down, 255 - across]) + noise - 30, 0, 255).astype(np.uint8))


def saved(kind: str, picture: Image.Image, **options: Any) -> bytes:
    """A file of this kind."""
    picture.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of what Pillow does not write; ``rows`` with the byte of the filter before each."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def over_white(data: bytes) -> Image.Image:
    """What transformers' processors make of transparency where they still see it."""
    from transformers.image_transforms import convert_to_rgb

    return Image.fromarray(convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True))


def upper_bits(values: np.ndarray) -> Wanted:
    """The upper 8 bits of 16, as Pillow itself reads colours of 16 bits."""
    return lambda _: Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def upright(data: bytes) -> Image.Image:
    """A picture that its EXIF orientation has turned."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def kinds() -> dict[str, Kind]:
    """Every kind of file, by what people would call it."""
    picture = photo()
    grey, clear = picture.convert("L"), picture.copy()
    clear.putalpha(Image.fromarray(np.linspace(0, 255, SIZE[0] * SIZE[1]).astype(np.uint8).reshape(SIZE[::-1])))
    deep = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[::-1])
    colours = b"".join(b"\0" + np.dstack([row, row[::-1], row]).astype(">u2").tobytes() for row in deep)
    frames = {"save_all": True, "append_images": [Image.new("RGB", SIZE, one) for one in ("red", "blue")]}
    white, bits = "over white, as the processors do", "the upper 8 bits, as Pillow has it for colours"
    jpeg = saved("JPEG", picture, quality=95)
    found = {
        "1 × 1": Kind(saved("PNG", picture.crop((0, 0, 1, 1)))),
        "2000 × 20": Kind(saved("PNG", picture.resize((2000, 20)))),
        "3000 × 20": Kind(saved("PNG", picture.resize((3000, 20))), refused="too narrow"),
        "20 × 3000": Kind(saved("PNG", picture.resize((20, 3000))), refused="too narrow"),
    }
    for number in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = number
        found[f"EXIF orientation {number}"] = Kind(saved("JPEG", picture, exif=exif), upright)
    return found | {
        "CMYK JPEG": Kind(saved("JPEG", picture.convert("CMYK"))),
        "CMYK TIFF": Kind(saved("TIFF", picture.convert("CMYK"))),
        "LAB TIFF": Kind(saved("TIFF", picture.convert("LAB"))),
        "16-bit grey PNG": Kind(saved("PNG", Image.fromarray(deep)), upper_bits(deep), bits),
        "16-bit grey TIFF": Kind(saved("TIFF", Image.fromarray(deep)), upper_bits(deep), bits),
        "16-bit colour PNG": Kind(png(*SIZE, 16, 2, colours)),
        "alpha PNG": Kind(saved("PNG", clear), over_white, white),
        "alpha WebP": Kind(saved("WEBP", clear, lossless=True), over_white, white),
        "grey with alpha": Kind(saved("PNG", clear.convert("LA")), over_white, white),
        "palette": Kind(saved("PNG", picture.quantize(16))),
        "palette with transparency": Kind(saved("PNG", picture.quantize(8), transparency=3), over_white, white),
        "black and white": Kind(saved("PNG", grey.convert("1"))),
        "grey JPEG": Kind(saved("JPEG", grey)),
        "progressive JPEG": Kind(saved("JPEG", picture, progressive=True)),
        "phone's JPEG of two views (MPO)": Kind(saved("MPO", picture, save_all=True, append_images=[picture])),
        "BMP": Kind(saved("BMP", picture)),
        "WebP": Kind(saved("WEBP", picture)),
        "AVIF": Kind(saved("AVIF", picture)),
        "animated GIF": Kind(saved("GIF", picture, **frames), why="its first frame, and a warning"),
        "animated WebP": Kind(saved("WEBP", picture, **frames), why="its first frame, and a warning"),
        "JPEG called .png": Kind(jpeg),
        "truncated JPEG": Kind(jpeg[:-200], refused="truncated"),
        "truncated PNG": Kind(saved("PNG", picture)[:-200], refused="truncated"),
        "empty file": Kind(b"", refused="unknown format"),
        "a PNG of 20000 × 20000": Kind(png(20000, 20000, 8, 2, b""), refused="at most"),
        "a PNG of 0 × 0": Kind(png(0, 0, 8, 2, b""), refused="cannot be read"),
        "MP4 called .png": Kind(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", refused="a video"),
        "HEIC": Kind(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", refused="HEIC"),
        "SVG": Kind(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', refused="unknown format"),
        "PDF": Kind(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", refused="unknown format"),
        "web page called .jpg": Kind(b"<!doctype html><title>404</title>", refused="unknown format"),
        "float TIFF": Kind(saved("TIFF", grey.convert("F")), refused="not what is white"),
        "32-bit TIFF": Kind(saved("TIFF", grey.convert("I")), refused="not what is white"),
        "ICO": Kind(saved("ICO", picture), refused="unknown format"),
    }


def tried(kind: Kind, path: Path) -> dict[str, Any]:
    """What each door makes of a file."""
    path.write_bytes(kind.data)
    loaded = _read(_load_image, path)
    doors = {"safetykit": _read(as_picture, path), "bytes": _read(as_picture, kind.data)}
    doors["run_ort.py"] = _read(run_ort.opened, path)
    told: dict[str, Any] = {"why": kind.why, "load_image": loaded if isinstance(loaded, str) else None}
    if kind.refused is not None:
        said = {name: found for name, found in doors.items() if isinstance(found, str)}
        named = all(kind.refused in str(said.get(name)) for name in ("safetykit", "bytes"))
        told["outcome"] = REFUSED if len(said) == len(doors) and named else WRONG
        return {**told, "said": said.get("safetykit", "").replace(str(path), "FILE")}
    wanted = kind.wanted(kind.data) if kind.wanted else loaded
    off = {name: _off(found, wanted) for name, found in doors.items()}
    told["outcome"] = RIGHT if set(off.values()) == {0} else WRONG
    return {**told, "off": off, "load_image_off": _off(loaded, wanted)}


def _read(door: Callable[[Any], Image.Image], what: Any) -> Image.Image | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return door(what)
        except UsageError as error:
            return error.message
        except Exception as error:  # of another door, whatever its decoder raises
            return f"{type(error).__name__}: {error}"


def _load_image(path: Path) -> Image.Image:
    from transformers.image_utils import load_image

    return load_image(str(path))


def _off(found: Image.Image | str, wanted: Image.Image | str) -> int | None:
    """The largest difference of a pixel; None where there is nothing to compare."""
    if isinstance(found, str) or isinstance(wanted, str) or found.size != wanted.size or found.mode != "RGB":
        return None
    return int(np.abs(np.asarray(found, np.int16) - np.asarray(wanted.convert("RGB"), np.int16)).max())


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line a kind."""
    lines = ["| picture | safetykit, `run_ort.py` | `load_image` | |", "|---|---|---|---|"]
    for name, one in found.items():
        off = one.get("load_image_off")
        theirs = (
            "reads nothing"
            if one["load_image"]
            else "reads it"
            if off is None
            else "the same"
            if not off
            else f"{off} off"
        )
        lines.append(f"| {name} | {one['outcome']} | {theirs} | {one['why'] or one.get('said', '')} |")
    counts = [sum(one["outcome"] == outcome for one in found.values()) for outcome in (RIGHT, REFUSED, WRONG)]
    return (
        "\n".join([*lines, "", f"Of {len(found)}: {counts[0]} right, {counts[1]} refused, {counts[2]} wrong."]) + "\n"
    )


def main(given: Sequence[str] | None = None) -> int:
    """Try every kind, write the table."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results")
    options = parser.parse_args(given)
    with TemporaryDirectory() as work:
        found = {name: tried(kind, Path(work) / "picture.png") for name, kind in kinds().items()}
    write_results(options.out / "pictures.json", found)
    write_table(options.out / "pictures.md", table(found))
    return int(any(one["outcome"] == WRONG for one in found.values()))


if __name__ == "__main__":
    run(main)
