"""`safetykit data carriers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..data.carriers.names import FormName, Language
from .data_check import Records
from .data_records import RecordsOut
from .options import Json, Overwrite, one_of


def carriers(
    records: Records,
    out: RecordsOut,
    form: Annotated[
        list[str] | None, one_of(FormName, "How requests come with a picture; repeat for several, all by default.")
    ] = None,
    language: Annotated[
        list[str] | None, one_of(Language, "Of what is written beside a picture; repeat to mix. By default en.")
    ] = None,
    font: Annotated[
        list[Path] | None, typer.Option(help="Font file; repeat to mix. By default three of DejaVu.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photos for scene and photo; by default two of scikit-learn's.")
    ] = None,
    side: Annotated[int, typer.Option(min=64, max=4096, help="Of a picture, in pixels.")] = 448,
    seed: Annotated[int, typer.Option(min=0, help="Of what is left to chance.")] = 0,
    drawn_only: Annotated[bool, typer.Option("--drawn-only", help="Leave out the records that are given.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw requests that are text into pictures, or put pictures beside them that say nothing.

    Harmful requests and harmless ones alike, so that a fit cannot tell them by their pictures.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.errors import UsageError
    from ...adapters.settings import require_choice
    from ..data.carriers.lettering import Font, default_fonts
    from ..data.carriers.made import Brush, with_carriers
    from ..data.records import load_records
    from ..data.sources import data_path
    from . import console

    forms, languages = _once(form or get_args(FormName)), _once(language or ["en"])
    for one in forms:
        require_choice("--form", one, get_args(FormName))
    for one in languages:
        require_choice("--language", one, get_args(Language))
    fonts = [Font(one) for one in font] if font else default_fonts()
    brush = Brush(forms, languages, fonts, photos, side, seed)  # type: ignore[arg-type]
    if photos is not None and not brush.shows_photos:
        raise UsageError(f"--photos does nothing with {', '.join(forms)}.", "Leave it out, or add --form photo.")
    for name, given in (("--font", font), ("--language", language)):
        if given and not brush.draws_words:
            raise UsageError(f"{name} does nothing with {', '.join(forms)}.", "Leave it out, or add --form scene.")
    with claimed(out, overwrite=overwrite, inputs=[data_path(records), photos]), console.steps("drawing"):
        made = with_carriers(load_records(records), out, brush, drawn_only=drawn_only, overwrite=overwrite)
    if made.too_long:
        left = ", ".join(f"{count} of {name}" for name, count in made.too_long.items())
        console.warn(f"Requests that do not fit were left out: {left}. Draw larger pictures (--side).")
    if made.too_short:
        console.warn(f"Requests of one word cannot be parted and were left out: {sum(made.too_short.values())}.")
    if made.pictured:
        console.warn(f"{made.pictured} records show a picture or are a conversation; they were not drawn.")
    value = {
        "records": str(out),
        "drawn": dict(made.drawn),
        "too_long": dict(made.too_long),
        "too_short": dict(made.too_short),
        "not_drawn": made.pictured,
        "counts": dict(made.counts),
    }
    console.emit(value, as_json=as_json, human=_show, then=console.command_line("data", "check", out))


def _once(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _show(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in value["drawn"].items()]
    rows += [(name, str(count)) for name, count in sorted(value["counts"].items())]
    facts(console, f"drawn → {value['records']}", rows)
