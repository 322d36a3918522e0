"""`safetykit data check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.options import RECORDS
from .options import Json

if TYPE_CHECKING:
    from ..data.record import Record

Records = Annotated[str, typer.Argument(help=RECORDS)]
_SHOWN = 50  # faults that a person is shown
_SHAPE = (32, 4096)  # blocks and width of the decoder for which methods are asked what they lack


def check(records: Records, as_json: Json = False) -> None:
    """Tell everything that is wrong with records at once.

    Every picture is decoded. Records are counted per split, carrier and label; each method says what it would lack.
    The exit code is 3 where a row is no record.
    """
    from ...adapters.errors import InvalidArtifact
    from ..data.checking import check_records
    from ..evaluation.few import few_records
    from . import console

    with console.steps("checking"):
        found = check_records(records)
        lacks = _lacks(found.records)
    few = few_records(found.counts)
    value = {"records": records, **found.values(), "few": few, "methods": lacks}
    bad = bool(found.faults)
    then = "" if bad else console.command_line("data", "show", records, "-o", "records.html")
    console.emit(value, as_json=as_json, human=_show, then=then)
    if bad:
        raise typer.Exit(InvalidArtifact.exit_code)


def _lacks(records: Sequence[Record]) -> dict[str, str]:
    """What a fit of each method on labelled records would lack; empty where it would run.

    The methods are asked themselves, with the settings that they usually have.
    """
    from ...adapters.errors import SafetykitError
    from ...adapters.extras import explained
    from ...adapters.registry import methods

    used = [record for record in records if record.split in ("fit", "calibration")]
    found = {}
    for name, method in methods().items():
        if method.data != "records":
            continue
        try:
            from ..model.shape import Shape
            from .fit_plan import require_fit

            require_fit(method, {}, Shape(*_SHAPE), used, sweep=False)
            found[name] = ""
        except (SafetykitError, ImportError) as error:  # what is lacking may be a package that fits need
            found[name] = str(explained(error))
    return found


def _show(console: Any, value: dict[str, Any]) -> None:
    from rich.markup import escape

    from .views import facts, figures

    for kind, style in (("faults", "red"), ("warnings", "yellow")):
        for fault in value[kind][:_SHOWN]:
            place = ":".join(str(part) for part in (fault["file"], fault["row"] or "", fault["field"]) if part)
            console.print(f"[{style}]{escape(place)}[/{style}]: {escape(fault['reason'])}. {escape(fault['fix'])}")
        if (more := len(value[kind]) - _SHOWN + (value["more"] if kind == "faults" else 0)) > 0:
            console.print(f"… and {more} more {kind}; --json tells them.")
    names = sorted({name.rpartition("/")[0] for name in value["counts"]})
    table = figures("Records", "harmful", "harmless")
    for name in names:
        table.add_row(name, *(str(value["counts"].get(f"{name}/{label}", 0)) for label in ("harmful", "harmless")))
    console.print(table)
    rows = [(name, escape(lack) if lack else "could be fitted") for name, lack in value["methods"].items()]
    facts(console, "Methods that learn from labelled records", rows)
    if value["few"]:
        console.print(escape(value["few"]))
    said = f"{len(value['faults']) + value['more']} faults, {len(value['warnings'])} warnings"
    console.print("No fault." if not value["faults"] and not value["warnings"] else said)
