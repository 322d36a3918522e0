"""Options that several commands share. No command module imports torch before it runs, so that --help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
