"""`safetykit card`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.options import Json

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
def card(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    check: Annotated[bool, typer.Option("--check", help="Only check that the card says what its data says.")] = False,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from .verification import card_of

    then = console.command_line("verify", folder)
    console.emit(card_of(folder, check=check), as_json=as_json, human=_view, then=then)


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    verb = "match their data" if value["checked"] else "written"
    console.print(f"{escape(value['card'])} and {escape(value['report'])}: {verb}.")
