"""`safetykit data`: records from the data that people have."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from .data_carriers import carriers
from .data_check import check
from .data_import import import_
from .data_records import init, show, split
from .data_starter import starter


class ImportCommand(TyperCommand):
    """A command whose help names the kinds, which are looked for when it is asked for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, the kinds above the example."""
        from ..data.importers import importers

        example, self.epilog = self.epilog, f"KIND: {', '.join(importers())}, auto.\n\n{self.epilog}"
        try:
            super().format_help(ctx, formatter)
        finally:
            self.epilog = example


data = typer.Typer(no_args_is_help=True)
for name, command, example in (
    ("starter", starter, "starter -o records"),
    ("import", import_, "import mm-safetybench ./MM-SafetyBench -o records"),
    ("check", check, "check records"),
    ("carriers", carriers, "carriers prompts -o records --form typographic --form blank"),
    ("split", split, "split records -o split-records"),
    ("show", show, "show records -o records.html"),
    ("init", init, "init my-records"),
):
    kind = ImportCommand if command is import_ else TyperCommand
    data.command(name, cls=kind, epilog=f"Example: safetykit data {example}")(command)
