"""`safetykit data`: records from the data that people have."""

from __future__ import annotations

import typer

from .data_check import check
from .data_import import import_
from .data_records import init, show, split

data = typer.Typer(no_args_is_help=True)
for name, command, example in (
    ("import", import_, "import mm-safetybench ./MM-SafetyBench -o records"),
    ("check", check, "check records"),
    ("split", split, "split records -o split-records"),
    ("show", show, "show records -o records.html"),
    ("init", init, "init my-records"),
):
    data.command(name, epilog=f"Example: safetykit data {example}")(command)
