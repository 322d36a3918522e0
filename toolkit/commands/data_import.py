"""`safetykit data import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from .options import Json, Overwrite

if TYPE_CHECKING:
    from ..data.importers import Importer

Records = Annotated[Path, typer.Option("-o", "--out", help="Folder of records to write.")]
_OF_A_LABEL = {"label", "harmful", "harmless"}  # fields of columns, of which a record has one
_NAMED = 10  # columns or files of which nothing was made that are told


def import_(
    kind: Annotated[str, typer.Argument(help="Data set or format, or auto: by the files in the folder.")],
    path: Annotated[Path, typer.Argument(help="Its folder as it was published, or a file of it.")],
    out: Records,
    split: Annotated[str, typer.Option(metavar="fit|calibration|test", help="Split of the records.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many, evenly over carriers, labels and categories.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its pictures, if they lie elsewhere.")] = None,
    label: Annotated[
        str | None, typer.Option(metavar="harmful|harmless", help="Label of all records, if no column says it.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Category of records that have none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Request that goes with all pictures, if none is there.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NAME", help="Column of a field of records, or of a yes to harmful or harmless; repeatable."
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that are not as the data set says, and count them.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make records of a published data set or of a common format.

    Pictures are decoded once, within the limits of all pictures, and copied beside the records.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.errors import UsageError
    from ...adapters.settings import require_choice
    from ..data.importers import Source, get_importer, recognised
    from ..data.importing import TOLD, import_records
    from ..data.record import LABELS, Split
    from . import console

    require_choice("--split", split, get_args(Split))
    if label is not None:
        require_choice("--label", label, LABELS)
    columns = _columns(column or [])
    importer = None if kind == "auto" else get_importer(kind)
    for place, what in ((path, "data set"), (images, "folder of pictures")):
        if place is not None and not place.exists():
            raise UsageError(f"There is no {what} at {place}.", "Correct the path; nothing is downloaded.")
    importer = importer or recognised(path)
    given: dict[str, Any] = {
        "images": images,
        "label": label,
        "category": category,
        "prompt": prompt,
        "columns": columns,
    }
    _require_taken(importer, given)
    source = Source(path, **given)
    with claimed(out, overwrite=overwrite, inputs=[path, images]), console.steps("importing"):
        made = import_records(
            importer,
            source,
            out,
            split=split,  # type: ignore[arg-type]
            limit=limit,
            skip_bad_rows=skip_bad_rows,
            told=sys.maxsize if console.running.verbose else TOLD,
            overwrite=overwrite,
        )
    if made.left_out:
        console.warn(f"bad rows left out: {made.left_out}. {' '.join(made.reasons)}")
    if any(made.unused.values()):
        console.warn(f"not used: {_unused(made.unused)}")
    value = {
        "records": str(out),
        "importer": importer.name,
        "licence": importer.licence,
        "metric": importer.metric,
        "counts": dict(made.counts),
        "pictures": made.pictures,
        "left_out": made.left_out,
        "unused": made.unused,
    }
    console.emit(value, as_json=as_json, human=_show_import, then=console.command_line("data", "check", out))


def _unused(found: dict[str, list[str]]) -> str:
    """What was not used in a line, of each kind the first."""
    from ..data.importers.rows import plain

    return "; ".join(
        plain(
            f"{kind} {', '.join(names[:_NAMED])}{f' and {more} more' if (more := len(names) - _NAMED) > 0 else ''}", 600
        )
        for kind, names in found.items()
        if names
    )


def _columns(given: list[str]) -> dict[str, str]:
    """Fields with the columns that hold them.

    Raises:
        UsageError: one is not written as a pair, no field of records, or a second one of its field.
    """
    from ...adapters.errors import UsageError
    from ...adapters.settings import require_choice
    from ..data.importers.mapped import NAMED

    found: dict[str, str] = {}
    for text in given:
        field, _, name = text.partition("=")
        if not name:
            raise UsageError(f"--column {text!r} names no column.", "Write FIELD=NAME, such as prompt=question.")
        require_choice("--column", field, list(NAMED))
        if other := next((one for one in found if one == field or {one, field} <= _OF_A_LABEL), None):
            raise UsageError(
                f"--column names two columns of one field: {other}={found[other]} and {text}.", "Name one of them."
            )
        found[field] = name
    return found


def _require_taken(importer: Importer, given: dict[str, Any]) -> None:
    """Refuse an option that is empty, or that the importer does not use.

    Raises:
        UsageError: naming those that it does.
    """
    from ...adapters.errors import UsageError

    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise UsageError(f"{_option(name)} is empty.", "Leave it out, or say something.")
        if value and name not in importer.takes:
            takes = ", ".join(map(_option, importer.takes)) or "no option of its own"
            raise UsageError(f"{_option(name)} does nothing with {importer.name}.", f"Leave it out; it takes {takes}.")


def _option(name: str) -> str:
    return f"--{name.removesuffix('s') if name == 'columns' else name}"


def _show_import(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in sorted(value["counts"].items())]
    rows += [("pictures", str(value["pictures"])), ("licence", value["licence"])]
    rows += [("counted by its publishers as", value["metric"])] if value["metric"] else []
    facts(console, f"{value['importer']} → {value['records']}", rows)
