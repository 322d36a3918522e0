"""Words drawn by Pillow: fonts, letters that a font has, lines that fit."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ....adapters.errors import UsageError
from ....adapters.extras import missing

SMALLEST = 12  # pixels of a letter's height, below which models read little
_DEJAVU = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
_SPACING = 1.25  # of lines, in letters' heights
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # categories of Unicode
_NONE = "\uffff"  # a code point that no font has a letter for


class Font:
    """A font in every size.

    Args:
        file: TrueType or OpenType.

    Raises:
        UsageError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self.of_size = lru_cache(maxsize=256)(partial(_opened, file))
        self.of_size(SMALLEST)

    def lacks(self, text: str) -> str:
        """The first letter of a text for which the font has none; empty if it has all."""
        return next((one for one in dict.fromkeys(text) if not one.isspace() and self._is_box(one)), "")

    def _is_box(self, letter: str) -> bool:
        font = self.of_size(SMALLEST)
        mask, box = font.getmask(letter), font.getmask(_NONE)
        return mask.size == box.size and bytes(mask) == bytes(box)


def _opened(file: Path, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(file), size)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a font ({error}).", "Name a .ttf or .otf file.") from None
    except ImportError:
        raise UsageError("This Pillow draws no fonts.", "Install Pillow with FreeType.") from None


def default_fonts() -> tuple[Font, ...]:
    """DejaVu's Sans, Serif and Sans Mono, which matplotlib carries: Latin, Greek and Cyrillic letters.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import get_data_path
    except ImportError:
        raise missing("matplotlib", "Drawing words, unless you name a --font,") from None
    return tuple(Font(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf")) for name in _DEJAVU)


class Letters(NamedTuple):
    """A text that fits into a rectangle.

    Attributes:
        lines: of it.
        size: of the letters in pixels.
        step: pixels from a line to the next.
    """

    font: Font
    lines: tuple[str, ...]
    size: int
    step: int

    @property
    def height(self) -> int:
        """In pixels."""
        return self.step * len(self.lines)

    def draw(self, picture: Image.Image, left: int, top: int, ink: str) -> None:
        """Draw the lines below one another."""
        pen, font = ImageDraw.Draw(picture), self.font.of_size(self.size)
        for number, line in enumerate(self.lines):
            pen.text((left, top + number * self.step), line, fill=ink, font=font)


def fitted(
    font: Font, text: str, width: int, height: int, *, largest: int, below: Sequence[str] = ()
) -> Letters | None:
    """The text in the largest letters in which it fits, broken between words; None if it fits in none.

    Args:
        width, height: of the rectangle, in pixels.
        largest: size of letters.
        below: lines that stand below it, which are not broken.
    """

    def of(size: int) -> Letters:
        return Letters(font, (*_broken(font.of_size(size), text, width), *below), size, round(size * _SPACING))

    if of(SMALLEST).height > height:
        return None
    return next((found for size in range(largest, SMALLEST, -1) if (found := of(size)).height <= height), of(SMALLEST))


def visible(text: str) -> bool:
    """Whether a text has a letter that is seen: white space and marks of format are not."""
    return any(not one.isspace() and unicodedata.category(one) not in _UNSEEN for one in text)


def _broken(font: ImageFont.FreeTypeFont, text: str, width: int) -> Iterator[str]:
    """Lines of at most so many pixels; a word that is longer is broken, too, as are scripts without spaces."""
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}"[: width + 1]) > width:
                yield line
                line = ""
            line = f"{line} {word}" if line else word
            while font.getlength(line[: width + 1]) > width:  # a letter is a pixel wide at least
                count = _most(font, line[: width + 1], width)
                yield line[:count]
                line = line[count:]
        yield line


def _most(font: ImageFont.FreeTypeFont, line: str, width: int) -> int:
    """How many letters of a line fit; one at least."""
    low, high = 1, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(line[:middle]) <= width else (low, middle - 1)
    return low
