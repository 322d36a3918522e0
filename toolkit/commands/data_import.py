"""`safetykit data import`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...adapters.settings import spell
from ..data.import_options import ImportOptions
from .derived import takes
from .options import Json, Overwrite

if TYPE_CHECKING:
    from ..data.importers import Importer

Records = Annotated[Path, typer.Option("-o", "--out", help="Folder of records to write.")]
_NAMED = 10  # columns or files of which nothing was made that are told


@takes(ImportOptions)
def import_(
    kind: Annotated[str, typer.Argument(help="Data set or format, or auto: by the files in the folder.")],
    path: Annotated[Path, typer.Argument(help="Its folder as it was published, a file of it, or package:NAME.")],
    out: Records,
    options: ImportOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make records of a published data set or of a common format.

    Pictures are decoded once, within the limits of all pictures, and copied beside the records.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.errors import UsageError
    from ..data.importers import Source, get_importer, recognised
    from ..data.importing import TOLD, import_records
    from ..data.packages import package_folder
    from . import console

    path = package_folder(path)
    importer = None if kind == "auto" else get_importer(kind)
    for place, what in ((path, "data set"), (options.images, "folder of pictures")):
        if place is not None and not place.exists():
            raise UsageError(f"There is no {what} at {place}.", "Correct the path; nothing is downloaded.")
    importer = importer or recognised(path)
    given = options.said()
    _require_taken(importer, given)
    source = Source(path, **given)
    with claimed(out, overwrite=overwrite, inputs=[path, options.images]), console.steps("importing"):
        made = import_records(
            importer,
            source,
            out,
            split=options.split,
            limit=options.limit,
            skip_bad_rows=options.skip_bad_rows,
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


def _require_taken(importer: Importer, given: Mapping[str, Any]) -> None:
    """Refuse an option that the importer does not use.

    Raises:
        UsageError: naming those that it does.
    """
    from ...adapters.errors import UsageError

    for name in given:
        if name not in importer.takes:
            takes = ", ".join(spell(ImportOptions, one) for one in importer.takes) or "no option of its own"
            option = spell(ImportOptions, name)
            raise UsageError(f"{option} does nothing with {importer.name}.", f"Leave it out; it takes {takes}.")


def _show_import(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in sorted(value["counts"].items())]
    rows += [("pictures", str(value["pictures"])), ("licence", value["licence"])]
    rows += [("counted by its publishers as", value["metric"])] if value["metric"] else []
    facts(console, f"{value['importer']} → {value['records']}", rows)
