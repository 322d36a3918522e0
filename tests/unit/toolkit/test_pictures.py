"""Pictures come from strangers: their format, size and kind are looked at before anything of them is decoded."""

import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

import safetykit
from safetykit.adapters import UsageError
from safetykit.adapters.errors import Unread
from safetykit.export.layouts import run_ort
from safetykit.toolkit.data import pictures
from safetykit.toolkit.data.pictures import FORMATS, MAX_PIXELS, PIXELS_VARIABLE, as_picture

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
GREY, ALPHA = PICTURE.convert("L"), Image.fromarray(np.arange(1200, dtype=np.uint16).astype(np.uint8).reshape(30, 40))
RGBA = PICTURE.copy()
RGBA.putalpha(ALPHA)
WHITE = (255, 255, 255)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


def saved(kind, picture=PICTURE, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width, height):
    """The head of a PNG of this size, and no pixels worth the name."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", FORMATS)
def test_usual_formats_are_read_whatever_their_files_are_called(kind, tmp_path):
    (tmp_path / "picture.txt").write_bytes(saved(kind))
    assert as_picture(tmp_path / "picture.txt").size == PICTURE.size == run_ort.opened(tmp_path / "picture.txt").size


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (EPS, "unknown format"),
        (saved("PPM"), "unknown format"),
        (saved("ICO"), "unknown format"),
        (png_of(65000, 1), "too narrow"),
        (png_of(13000, 13000), f"169000000|at most {MAX_PIXELS}"),
        (png_of(20000, 20000), f"many more pixels than are read, at most {MAX_PIXELS}"),
        (png_of(0, 0), "."),
        (png_of(0, 20), "."),
        (b"", "unknown format"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video: pass its frames"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read"),
        (b"\x1aE\xdf\xa3" + bytes(40), "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (saved("TIFF", GREY.convert("F")), "floats, and not what is white"),
        (saved("TIFF", GREY.convert("I")), "32 bits, and not what is white"),
        *((saved(kind)[:-200], ".") for kind in FORMATS),
    ],
    ids=[
        *(
            "EPS",
            "PPM",
            "ICO",
            "narrow",
            "large",
            "huge",
            "0x0",
            "0x20",
            "empty",
            "MP4",
            "HEIC",
            "Matroska",
            "AVI",
            "floats",
            "32 bits",
        ),
        *(f"half a {kind}" for kind in FORMATS),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_formats_sizes_and_truncated_files_are_refused_by_name(data, words, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    for form in (data, tmp_path / "x.png"):
        with pytest.raises(UsageError, match=words):
            as_picture(form)
    with pytest.raises(Exception):  # noqa: B017  the program says any, with the request's number
        run_ort.opened(tmp_path / "x.png")


@pytest.mark.parametrize(
    "value", [Image.new("RGB", (2000, 1)), Image.new("L", (0, 4)), np.zeros((1, 2000, 3), np.uint8)]
)
def test_pictures_in_memory_have_the_same_limits(value):
    with pytest.raises(UsageError, match="too narrow|no pixels"):
        as_picture(value)


def test_a_pipe_or_a_device_or_a_folder_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="a folder, a pipe or a device"):
            as_picture(path)
        with pytest.raises(OSError, match="a folder, a pipe or a device"):
            run_ort.opened(path)


def test_the_limit_can_be_set_and_a_wrong_one_is_refused(monkeypatch):
    monkeypatch.setenv(PIXELS_VARIABLE, "1000")
    with pytest.raises(UsageError, match=f"at most 1000 .*{PIXELS_VARIABLE}=1200"):
        as_picture(PICTURE)
    monkeypatch.setenv(PIXELS_VARIABLE, "1200")
    assert as_picture(PICTURE) is PICTURE
    for wrong in ("0", "-1", "many", "1e9", "9" * 30, ""):
        monkeypatch.setenv(PIXELS_VARIABLE, wrong)
        with pytest.raises(UsageError, match=PIXELS_VARIABLE):
            as_picture(PICTURE)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "sparse.webp", "wb") as file:
        file.write(saved("WEBP"))
        file.truncate(pictures.MAX_BYTES + 1)
    with pytest.raises(UsageError, match="larger than 256 MiB"):
        as_picture(tmp_path / "sparse.webp")


def test_a_rectangle_of_endless_digits_names_no_picture():
    with pytest.raises(UsageError, match="names no picture"):
        as_picture(f"a.png#xywh={'9' * 5000},0,1,1")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_once(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    data = saved("PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(data)
    kept = Image.open(io.BytesIO(data))
    wanted = ImageOps.exif_transpose(kept).convert("RGB")
    found = as_picture(data)
    assert found == wanted == as_picture(kept) == as_picture(found) == as_picture(tmp_path / "turned.png")
    assert run_ort.opened(tmp_path / "turned.png") == wanted
    assert (orientation == 1) == np.array_equal(found, PICTURE)


def test_the_program_beside_an_export_has_the_same_limits():
    said = (run_ort.FORMATS, run_ort.MAX_PIXELS, run_ort.MAX_RATIO)
    assert said == (pictures.FORMATS, pictures.MAX_PIXELS, pictures.MAX_RATIO)


def test_nothing_else_opens_a_picture_that_may_be_a_strangers():
    root = Path(safetykit.__file__).parent
    rooms = (path for room in ("adapters", "toolkit", "export") for path in (root / room).rglob("*.py"))
    found = {path.relative_to(root).as_posix() for path in rooms if re.search(r"Image\.open\(", path.read_text())}
    bundled = {"toolkit/reference/atlas.py", "toolkit/reference/measure.py", "toolkit/reference/pictures.py"}
    assert found - bundled == {"toolkit/data/pictures.py", "export/layouts/run_ort.py"}


def deep(data):
    """Grey values of 16 bits as a picture of Pillow."""
    return Image.fromarray(data.astype(np.uint16))


def test_grey_values_of_16_bits_keep_their_upper_8(tmp_path):
    values = np.linspace(0, 65535, 1200).reshape(30, 40)
    wanted = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    for kind in ("PNG", "TIFF"):
        (tmp_path / "deep").write_bytes(saved(kind, deep(values)))
        assert as_picture(tmp_path / "deep") == wanted == run_ort.opened(tmp_path / "deep")
    assert as_picture(deep(values)) == wanted


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_lies_over_white_as_transformers_has_it(mode):
    made = (RGBA if mode in ("RGBA", "RGBa") else RGBA.convert("LA")).convert(mode)
    shown = made.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    assert as_picture(made) == Image.fromarray(convert_to_rgb(shown, return_numpy=True))


@pytest.mark.parametrize(
    ("kind", "picture", "options"),
    [
        ("PNG", RGBA, {}),
        ("WEBP", RGBA, {"lossless": True}),
        ("TIFF", RGBA, {}),
        ("PNG", RGBA.convert("LA"), {}),
        ("PNG", PICTURE.quantize(8), {"transparency": 3}),
        ("PNG", GREY, {"transparency": int(np.asarray(GREY)[3, 3])}),
        ("PNG", PICTURE, {"transparency": PICTURE.getpixel((3, 3))}),
        ("GIF", PICTURE.quantize(8), {"transparency": 3}),
        ("PNG", GREY.convert("1"), {}),
        ("JPEG", PICTURE.convert("CMYK"), {}),
        ("TIFF", PICTURE.convert("LAB"), {}),
        ("TIFF", PICTURE.convert("CMYK"), {}),
        ("PNG", PICTURE.quantize(8), {}),
        ("PNG", PICTURE.crop((0, 0, 1, 1)), {}),
        ("BMP", PICTURE.crop((0, 0, 40, 3)), {}),
        ("JPEG", GREY, {}),
        ("JPEG", PICTURE, {"progressive": True}),
    ],
)
def test_odd_pictures_are_read_as_transformers_reads_them(kind, picture, options, tmp_path):
    (tmp_path / "odd").write_bytes(data := saved(kind, picture, **options))
    wanted = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    for found in (as_picture(data), run_ort.opened(tmp_path / "odd")):
        assert np.array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_read_and_that_is_said(kind):
    data = saved(
        kind, PICTURE, save_all=True, append_images=[Image.new("RGB", PICTURE.size, one) for one in ("red", "blue")]
    )
    with pytest.warns(Unread, match="has 3 frames or pages, of which only the first is read"):
        found = as_picture(data)
    assert found == Image.open(io.BytesIO(data)).convert("RGB") and len(found.getcolors(1200)) > 1


def test_a_phone_s_jpeg_with_several_views_is_one_picture(recwarn):
    data = saved("MPO", PICTURE, save_all=True, append_images=[PICTURE])
    assert as_picture(data).size == PICTURE.size and not recwarn.list


def test_an_array_s_alpha_lies_over_white():
    array = np.zeros((4, 4, 4), np.uint8)
    assert as_picture(array).getpixel((0, 0)) == WHITE
    array[..., 3] = 255
    assert as_picture(array).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["system", "messages", "images", "answer"])
def test_the_program_refuses_what_it_does_not_read(name):
    with pytest.raises(ValueError, match=f"no {name}"):
        run_ort.asked(json.dumps({"prompt": "a", name: "b"}))
    assert run_ort.asked('{"prompt": "a", "id": "kept by whoever asks"}') == ("a", None)
