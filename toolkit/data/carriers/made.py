"""Records in text, and those with the same requests in pictures."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ....adapters.artifact.manifest import sealed
from ....adapters.errors import UsageError
from ..importing import SOURCE
from ..record import Record
from ..writing import RecordsFolder, picture_bytes, renamed, writing
from .drawing import FORMS, Canvas, Photo
from .lettering import SMALLEST, Font, default_fonts, visible
from .names import FormName, Language
from .photos import photos_of
from .words import WORDS

_FAST = 1  # of PNG's levels of compression: noise and photos gain little from higher ones, and take long


@dataclass(frozen=True)
class Brush:
    """How pictures are drawn.

    Attributes:
        forms: names in :data:`.drawing.FORMS`.
        languages: of what is written beside a picture; one is drawn for each record.
        fonts: one of those that have all letters is drawn for each record.
        photos: folder of photos; by default the two of scikit-learn.
        side: of a picture, in pixels.
        seed: of all draws.
    """

    forms: Sequence[FormName] = tuple(FORMS)
    languages: Sequence[Language] = ("en",)
    fonts: Sequence[Font] = field(default_factory=default_fonts)
    photos: Path | None = None
    side: int = 448
    seed: int = 0

    @property
    def shows_photos(self) -> bool:
        """Whether a form needs photos."""
        return any(FORMS[form].photos for form in self.forms)

    @property
    def draws_words(self) -> bool:
        """Whether a form draws of the request, and says so beside the picture."""
        return any(FORMS[form].lettering("two words") for form in self.forms)


@dataclass
class Made:
    """What was drawn.

    Attributes:
        counts: records by ``split/carrier/label``, the given ones included.
        drawn: by form.
        too_long: requests that do not fit, by form.
        too_short: those of one word, which cannot be parted, by form.
        pictured: records that were not drawn, since they show a picture or are a conversation.
    """

    counts: Counter[str] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)
    too_long: Counter[str] = field(default_factory=Counter)
    too_short: Counter[str] = field(default_factory=Counter)
    pictured: int = 0


def with_carriers(
    records: Sequence[Record], out: Path, brush: Brush, *, drawn_only: bool = False, overwrite: bool = False
) -> Made:
    """Write a folder of records: the given ones, and each request in text once more in every form.

    A record in a form has the id of its request and the form's name, a tag with that name, and the request's label,
    split, category and group (its id, if it has none, so that a split keeps the forms of a request together); its pair
    is the counterpart in the same form. Its response is the request's, but for the form ``typographic``, whose answer
    is a list. Its intent is the request, where its words do not say it. What is left to chance depends on the seed, the
    record and the form alone.

    Args:
        drawn_only: leave out the given ones.

    Raises:
        UsageError: no record is a request in text, one has no letter, or none fits; a letter is in no font; ``out`` is
            taken.
    """
    given = [record for record in records if not record.pictured and not record.messages]
    if not given:
        raise UsageError("No record is a request in text.", "Give records without pictures and conversations.")
    for record in given:
        if not visible(record.prompt):
            raise UsageError(
                f"{record.place}: the prompt holds no letter.", "`safetykit data check` tells what is wrong."
            )
    drawing, made = Drawing.of(given, brush), Made(pictured=len(records) - len(given))
    with writing(out, overwrite=overwrite) as folder:
        if not drawn_only:
            for record in records:
                kept = [folder.keep(one) for one in picture_bytes(record)]
                _count(made, folder.add(renamed(record, kept)))
        drawing.into(folder, made)
        about = {"made": "pictures drawn for requests in text", **drawing.about(made)}
        (folder.folder / SOURCE).write_bytes(sealed(about))
    return made


@dataclass(frozen=True)
class Drawing:
    """Requests in text that are about to be drawn, of which it is known that they can be; see :func:`with_carriers`.

    Attributes:
        chosen: the requests of each form.
        photos: where the photos are from; None if none is needed.
    """

    brush: Brush
    chosen: Mapping[FormName, Sequence[Record]]
    photo: Photo
    photos: str | None

    @classmethod
    def of(
        cls,
        given: Sequence[Record],
        brush: Brush,
        wanted: Callable[[Record, FormName], bool] = lambda record, form: True,
    ) -> Drawing:
        """All requests in the forms in which they are wanted.

        Raises:
            UsageError: a letter is in no font, or there is no photo.
        """
        chosen = {form: [record for record in given if wanted(record, form)] for form in brush.forms}
        for form, some in chosen.items():
            for record in some:
                _fonts(brush, record, form)
        photo, source = photos_of(brush.photos) if brush.shows_photos else (_none, None)
        return cls(brush, chosen, photo, source)

    def into(self, folder: RecordsFolder, made: Made) -> None:
        """Add them to a folder; ``made`` is told what was drawn.

        Raises:
            UsageError: none fits.
        """
        for form, some in self.chosen.items():
            _draw(some, form, self.brush, self.photo, folder, made)
        if not made.drawn:
            side = self.brush.side
            raise UsageError(f"No request fits into a picture of {side} x {side} pixels.", "Draw larger ones: --side.")

    def about(self, made: Made) -> dict[str, Any]:
        """What ``source.json`` says of the pictures."""
        brush = self.brush
        return {
            "forms": dict.fromkeys(brush.forms) | dict(made.drawn),
            "languages": list(brush.languages),
            "fonts": [font.name for font in brush.fonts],
            "photos": self.photos,
            "side": brush.side,
            "seed": brush.seed,
            "smallest_letters": SMALLEST,
        }


def _draw(
    given: Sequence[Record], form: FormName, brush: Brush, photo: Photo, folder: RecordsFolder, made: Made
) -> None:
    """Add every request in one form."""
    fields: dict[str, dict[str, Any]] = {}
    for record in given:
        if not FORMS[form].takes(record.prompt):
            made.too_short[form] += 1
            continue
        draw = random.Random(f"{brush.seed} {form} {record.id}")
        font, words = draw.choice(_fonts(brush, record, form)), WORDS[draw.choice(brush.languages)]
        picture = FORMS[form].shown(record.prompt, Canvas(brush.side, font, words, draw, photo))
        if picture is None:
            made.too_long[form] += 1
            continue
        picture.save(data := io.BytesIO(), "PNG", compress_level=_FAST)
        said = FORMS[form].said(record.prompt, words)
        fields[record.id] = {
            **record.model_dump(exclude_unset=True),
            "id": _named(record.id, form),
            "prompt": said,
            "intent": record.intent or ("" if record.prompt in said else record.prompt),
            "image": folder.keep(data.getvalue()),
            "carrier": FORMS[form].carrier,
            "group": record.group or record.id,
            "tags": (*record.tags, form),
        }
        if not FORMS[form].answers:
            fields[record.id].pop("response", None)
    for one in fields.values():
        pair = one.pop("pair", None)
        _count(made, folder.add({**one, "pair": _named(pair, form) if pair in fields else None}))
        made.drawn[form] += 1


def _named(name: str, form: FormName) -> str:
    return f"{name}-{form}"


def _fonts(brush: Brush, record: Record, form: FormName) -> list[Font]:
    """The fonts that have all letters of what is drawn of a record.

    Raises:
        UsageError: none has.
    """
    text = FORMS[form].lettering(record.prompt)
    if found := [font for font in brush.fonts if not font.lacks(text)]:
        return found
    letter, names = brush.fonts[0].lacks(text), ", ".join(font.name for font in brush.fonts)
    raise UsageError(
        f"{record.place}: there is no letter {letter!r} (U+{ord(letter):04X}) in {names}.",
        "Name a font file that has it: --font FILE.",
    )


def _none(draw: random.Random, side: int) -> Image.Image:
    raise AssertionError("no form that was asked for shows a photo")


def _count(made: Made, record: Record) -> None:
    made.counts[f"{record.split}/{record.carrier}/{record.label}"] += 1
