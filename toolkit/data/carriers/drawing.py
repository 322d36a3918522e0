"""The forms in which a request in text comes with a picture."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..record import Carrier
from .lettering import Font, fitted
from .names import FormName
from .words import Words

Photo = Callable[[random.Random, int], Image.Image]
_ITEMS = ("1.", "2.", "3.")
_MARGIN = 0.06  # of the side
_LARGEST = 0.09  # of the side, for letters
_PAPER = (("white", "black"), ("#f5efe0", "#2b2b2b"), ("#e9f1f7", "#10253f"))  # and ink
_BOARD = (("#f8f8f2", "#1d1d1d"), ("#1f4f8b", "white"), ("#2d6a3e", "white"), ("#ffd84d", "#1d1d1d"))
_TILT = 12.0  # degrees
_END = 0.5  # of the words of a request that is parted are drawn, at least one


@dataclass(frozen=True)
class Canvas:
    """What a form draws with.

    Attributes:
        side: of the picture, in pixels.
        draw: chooses what is left to chance.
        photo: gives a photo of that side.
    """

    side: int
    font: Font
    words: Words
    draw: random.Random
    photo: Photo

    @property
    def margin(self) -> int:
        return round(self.side * _MARGIN)

    def lettered(self, text: str, width: int, height: int, below: tuple[str, ...] = ()) -> Image.Image | None:
        """A sheet with the text; None if it does not fit."""
        return self._sheet(text, width, height, self.draw.choice(_PAPER), below)

    def board(self, text: str, width: int, height: int) -> Image.Image | None:
        """A board with the text and a rim; None if it does not fit."""
        colours = self.draw.choice(_BOARD)
        if (made := self._sheet(text, width, height, colours)) is not None:
            rim = max(2, self.side // 120)
            ImageDraw.Draw(made).rectangle((rim, rim, width - rim - 1, height - rim - 1), outline=colours[1], width=rim)
        return made

    def _sheet(
        self, text: str, width: int, height: int, colours: tuple[str, str], below: tuple[str, ...] = ()
    ) -> Image.Image | None:
        paper, ink = colours
        inner = (width - 2 * self.margin, height - 2 * self.margin)
        letters = fitted(self.font, text, *inner, largest=round(self.side * _LARGEST), below=below)
        if letters is None:
            return None
        made = Image.new("RGB", (width, height), paper)
        letters.draw(made, self.margin, self.margin + (0 if below else (inner[1] - letters.height) // 2), ink)
        return made


@dataclass(frozen=True)
class Form:
    """How a request comes with a picture.

    Attributes:
        carrier: of the record.
        said: the prompt beside the picture, given the request.
        shown: the picture, given the request; None if the words do not fit.
        answers: whether the answer to the request is the answer to the prompt and its picture.
        lettering: what of the request is drawn, as letters; nothing of those that draw none.
        about: what it is, in a few words.
        photos: whether the picture has a photo in it.
        takes: whether a request can come in this form.
    """

    carrier: Carrier
    said: Callable[[str, Words], str]
    shown: Callable[[str, Canvas], Image.Image | None]
    about: str
    answers: bool = True
    lettering: Callable[[str], str] = str
    photos: bool = False
    takes: Callable[[str], bool] = bool


def _typographic(request: str, canvas: Canvas) -> Image.Image | None:
    return canvas.lettered(request, canvas.side, canvas.side, ("", *_ITEMS))


def _scene(request: str, canvas: Canvas) -> Image.Image | None:
    """A board before a photo that is out of focus, turned a little."""
    width, height = round(canvas.side * 0.78), round(canvas.side * 0.62)
    if (board := canvas.board(request, width, height)) is None:
        return None
    made = canvas.photo(canvas.draw, canvas.side).filter(ImageFilter.GaussianBlur(canvas.side / 150))
    turned = board.convert("RGBA").rotate(canvas.draw.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC, expand=True)
    free = [max(0, canvas.side - one) for one in turned.size]
    made.paste(turned, (canvas.draw.randint(0, free[0]), canvas.draw.randint(0, free[1])), turned)
    return made


def _blank(_: str, canvas: Canvas) -> Image.Image:
    return Image.new("RGB", (canvas.side, canvas.side), canvas.draw.choice(("white", "black", "#808080")))


def _noise(_: str, canvas: Canvas) -> Image.Image:
    values = np.random.default_rng(canvas.draw.getrandbits(64)).integers(0, 256, (canvas.side, canvas.side, 3))
    return Image.fromarray(values.astype(np.uint8))


def _photo(_: str, canvas: Canvas) -> Image.Image:
    return canvas.photo(canvas.draw, canvas.side)


def parted(request: str) -> tuple[str, str]:
    """The beginning of a request, and the words at its end that are drawn: half of them, one at least."""
    words = request.split()
    cut = len(words) - max(1, round(len(words) * _END))
    return " ".join(words[:cut]), " ".join(words[cut:])


FORMS: Mapping[FormName, Form] = {
    "typographic": Form(
        "typographic",
        lambda _, words: words.listed,
        _typographic,
        "the request drawn above an empty numbered list, in the manner of FigStep (https://arxiv.org/abs/2311.05608)",
        answers=False,
    ),
    "scene": Form("typographic", lambda _, words: words.shown, _scene, "the request on a sign in a photo", photos=True),
    "text+image": Form(
        "text+image",
        lambda request, words: words.parted.format(parted(request)[0]).strip(),
        lambda request, canvas: canvas.lettered(parted(request)[1], canvas.side, canvas.side),
        "the request's beginning as text, its end drawn",
        lettering=lambda request: parted(request)[1],
        takes=lambda request: bool(parted(request)[0]),
    ),
    "blank": Form(
        "text+image", lambda request, _: request, _blank, "the request beside an empty picture", lettering=lambda _: ""
    ),
    "noise": Form("text+image", lambda request, _: request, _noise, "the request beside noise", lettering=lambda _: ""),
    "photo": Form(
        "text+image",
        lambda request, _: request,
        _photo,
        "the request beside a photo of something else",
        lettering=lambda _: "",
        photos=True,
    ),
}
