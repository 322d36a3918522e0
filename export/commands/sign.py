"""`safetykit sign`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.options import Json

if TYPE_CHECKING:
    from rich.console import Console


def sign(
    folder: Annotated[Path, typer.Argument(help="Adapter, index or export folder.")],
    key: Annotated[Path, typer.Option("--key", help="Elliptic-curve private key, in PEM.")],
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Certificate of the key, in PEM; without, the key itself.")
    ] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option("--chain", help="Certificate between that and a root, in PEM; repeat for several."),
    ] = None,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from .verification import sign_folder

    result = sign_folder(folder, key, certificate, chain or [])
    console.emit(result, as_json=as_json, human=_view, then=console.command_line("verify", folder, "--policy", "FILE"))


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from rich.markup import escape

    console.print(f"Signed: {escape(value['signature'])}, which covers {value['files']} files of the {value['kind']}.")
