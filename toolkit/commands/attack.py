"""`safetykit attack`: pictures that a defence is to withstand."""

from __future__ import annotations

import typer

from .attack_corrupt import corrupt
from .attack_pgd import pgd

attack = typer.Typer(no_args_is_help=True)
for name, command, example in (
    ("pgd", pgd, "pgd ./my-vlm --data records/ --adapter adapter -o attacked"),
    ("corrupt", corrupt, "corrupt records/ -o corrupted --kind jpeg --kind rotate"),
):
    attack.command(name, epilog=f"Example: safetykit attack {example}")(command)
