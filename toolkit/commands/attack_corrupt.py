"""`safetykit attack corrupt`."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from ..attacks.options import CorruptOptions, Kind
from .data_check import Records
from .data_records import RecordsOut
from .derived import takes
from .options import Json, Overwrite, one_of


@takes(CorruptOptions)
def corrupt(
    records: Records,
    out: RecordsOut,
    options: CorruptOptions,
    kind: Annotated[
        list[str] | None, one_of(Kind, "What is done to a picture; repeat for several, all by default.")
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(min=1, max=5, metavar="1|2|3|4|5", help="How much of it; repeat for several, all by default."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn, cut, resize, compress or blur the pictures of records, in five severities.

    Every record is written once for each kind and severity; `safetykit eval` reports them apart.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.settings import require_choice
    from ..attacks.corrupted import corrupt as write
    from ..attacks.corrupted import pictured
    from ..data.sources import data_path
    from . import console

    for one in kind or ():
        require_choice("--kind", one, get_args(Kind))
    given = {"kinds": kind, "severities": severity}
    chosen = options.but(data=records, **{name: tuple(dict.fromkeys(one)) for name, one in given.items() if one})
    with claimed(out, overwrite=overwrite, inputs=[data_path(records)]), console.work("corrupting") as doing:
        found, left_out = pictured(chosen)
        made = write(found, chosen, out, left_out=left_out, overwrite=overwrite, progress=doing.count)
    if left_out:
        console.warn(f"{left_out} records show no picture; they were left out.")
    value = {
        "records": str(out),
        "made": dict(made.made),
        "left_out": made.left_out,
        "counts": dict(made.counts),
    }
    then = console.command_line("eval", "MODEL", "--data", out, "--split", options.split)
    console.emit(value, as_json=as_json, human=_show, then=then)


def _show(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in value["made"].items()]
    rows += [(name, str(count)) for name, count in sorted(value["counts"].items())]
    facts(console, f"corrupted → {value['records']}", rows)
