"""`safetykit data split`, `show` and `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..data.splitting import By
from .data_check import Records
from .options import Json, Overwrite, one_of

RecordsOut = Annotated[Path, typer.Option("-o", "--out", help="Folder of records to write.")]
_SHARES = "60,20,20"


def split(
    records: Records,
    out: RecordsOut,
    by: Annotated[
        str,
        one_of(By, "What stays together; pairs and equal requests do."),
    ] = "group",
    shares: Annotated[str, typer.Option(help="Percent of fit, calibration and test.")] = _SHARES,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Split records anew, pictures copied.

    A pair and equal requests are never parted, and equal pictures only by pair. Each split gets its share of every
    carrier and label, as far as what stays together allows.
    """
    import hashlib
    from collections import Counter

    from ...adapters.artifact.output import claimed
    from ...adapters.settings import require_choice
    from ..data.importing import SOURCE
    from ..data.record import LABELS
    from ..data.records import load_records
    from ..data.sources import data_path
    from ..data.splitting import split_records
    from ..data.writing import picture_bytes, renamed, telling, writing
    from . import console

    require_choice("--by", by, get_args(By))
    parts = _shares(shares)
    with claimed(out, overwrite=overwrite, inputs=[data_path(records)]), console.steps("splitting"):
        found = load_records(records)
        pictures = [[hashlib.sha256(one).hexdigest() for one in telling(picture_bytes(record))] for record in found]
        drawn = split_records(found, parts, by=by, seed=seed, pictures=pictures)  # type: ignore[arg-type]
        counts = Counter[str]()
        with writing(out, overwrite=overwrite) as folder:
            for record, part in zip(found, drawn, strict=True):
                kept = [folder.keep(one) for one in picture_bytes(record)]
                written = folder.add({**renamed(record, kept), "split": part})
                counts[f"{part}/{written.carrier}/{written.label}"] += 1
            if (about := data_path(records) / SOURCE).is_file():
                (folder.folder / SOURCE).write_bytes(about.read_bytes())
    held_by = {(name.partition("/")[0], name.rpartition("/")[2]) for name in counts}
    present = [label for label in LABELS if any(label == one for _, one in held_by)]
    wanted = [(part, label) for part, share in parts.items() if share for label in present]
    if lacking := [f"{part} has no {label} record" for part, label in wanted if (part, label) not in held_by]:
        console.warn(f"{'; '.join(lacking)}. Split by another thing (--by), or give more records.")
    value = {"records": str(out), "by": by, "seed": seed, "counts": dict(counts)}
    console.emit(value, as_json=as_json, human=_show_counts, then=console.command_line("data", "check", out))


def show(
    records: Records,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Records at most, evenly over carriers and labels.")] = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a sheet that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Draw records on a contact sheet: one HTML file that loads nothing.

    Harmful records are folded away.
    """
    from ...adapters.artifact.output import claimed_file, write_output
    from ..data.records import load_records, subset
    from ..data.sheet import MARK, contact_sheet
    from ..data.sources import data_path
    from . import console

    with claimed_file(out, overwrite=overwrite, begins=MARK), console.steps("drawing"):
        found = load_records(data_path(records))
        some = subset(found, limit)
        write_output(out, contact_sheet(some, f"Records of {records}", len(found)))
    value = {"sheet": str(out), "shown": len(some), "records": len(found)}
    console.emit(value, as_json=as_json, human=_show_sheet)


def init(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of records to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a folder to begin with: a few records and pictures, and what each field is for."""
    from ..data.template import write_template
    from . import console

    value = {"records": str(out), "count": write_template(out, overwrite=overwrite)}
    console.emit(value, as_json=as_json, human=_show_init, then=console.command_line("data", "check", out))


def _shares(text: str) -> dict[Any, float]:
    """Three percentages as shares by split.

    Raises:
        UsageError: they are none, or do not add up to 100.
    """
    from ...adapters.errors import UsageError
    from ..data.record import SPLITS

    parts = text.split(",")
    if len(parts) != len(SPLITS) or not all(one.strip().isdecimal() for one in parts) or sum(map(int, parts)) != 100:
        raise UsageError(f"--shares cannot be {text!r}.", f"Write three whole numbers that add up to 100: {_SHARES}.")
    return {split: int(one) / 100 for split, one in zip(SPLITS, parts, strict=True)}


def _show_counts(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in sorted(value["counts"].items())]
    facts(console, f"split by {value['by']} → {value['records']}", rows)


def _show_sheet(console: Any, value: dict[str, Any]) -> None:
    console.print(f"{value['shown']} of {value['records']} records → {value['sheet']}", markup=False)


def _show_init(console: Any, value: dict[str, Any]) -> None:
    console.print(f"{value['count']} records to begin with → {value['records']}", markup=False)
