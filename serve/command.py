"""`safetykit serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..toolkit.commands.common import reads_artifacts
from ..toolkit.commands.derived import takes
from ..toolkit.commands.options import Json
from .options import ServeOptions

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
@takes(ServeOptions)
def serve(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    options: ServeOptions,
    check: Annotated[bool, typer.Option("--check", help="Open everything, say what would be served, and end.")] = False,
    as_json: Json = False,
) -> None:
    from ..toolkit.commands import console
    from .plan import require_export, require_packages

    require_packages()
    require_export(folder)
    from .running import opened

    with opened(folder, options, say=console.note) as server:
        console.emit(server.told, as_json=as_json, human=_view)
        if not check:
            server.run()


def _view(console: Console, value: dict[str, Any]) -> None:
    """Where it listens, and for whom."""
    keys = f"{value['keys']} API keys" if value["keys"] else "everybody"
    console.print(f"{value['model']} at {value['url']}/v1 for {keys}", markup=False, soft_wrap=True)
