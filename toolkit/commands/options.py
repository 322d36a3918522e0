"""Options that several commands share. No command module imports torch before it runs, so that --help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..data.options import RECORDS

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[
    str, typer.Argument(help="Checkpoint folder, id in the local cache, or reference:mild / reference:severe.")
]
Data = Annotated[str, typer.Option("--data", help=RECORDS)]
Adapters = Annotated[list[Path] | None, typer.Option("--adapter", help="Adapter folder; repeat to stack.")]
WrongBase = Annotated[
    bool, typer.Option("--allow-wrong-base", help="Accept an adapter fitted on another model; the card shows it.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]

# Of fit commands.
AdapterOut = Annotated[Path, typer.Option("-o", "--out", help="Adapter folder to write.")]
Sweep = Annotated[bool, typer.Option("--sweep", help="Choose what is not given on calibration records.")]


def one_of(kind: Any, said: str) -> Any:
    """An option that takes one of the values of a ``Literal``, which are written there alone.

    Args:
        said: its help.
    """
    return typer.Option(metavar="|".join(get_args(kind)), help=said)
