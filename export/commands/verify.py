"""`safetykit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Adapters, Json
from .choices import VerifyOptions

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
@takes(VerifyOptions)
def verify(
    folder: Annotated[Path, typer.Argument(help="Adapter, index or export folder.")],
    options: VerifyOptions,
    model: Annotated[str | None, typer.Option(help="Checkpoint, to run parity again.")] = None,
    adapter: Adapters = None,
    as_json: Json = False,
) -> None:
    from ...toolkit.commands import console
    from .verification import verify_folder

    with console.work() as doing:
        result = verify_folder(folder, model, adapter or [], options, progress=doing, waiting=doing.hold)
    runs = result["kind"] not in ("adapter", "index")
    then = console.command_line("run", folder, "--prompt", "What is this?") if runs else ""
    console.emit(result, as_json=as_json, human=_view, then=then)


def _view(console: Console, value: dict[str, Any]) -> None:
    """What a person sees."""
    from rich.markup import escape

    from .views import parity

    files = "1 file matches" if value["files"] == 1 else f"{value['files']} files match"
    console.print(f"{escape(value['folder'])}: {files} the manifest ({value['kind']}).")
    if value["signature"]:
        said = "accepted by the policy" if value["signature"] == "accepted" else "not checked: no --policy says whose"
        console.print(f"It is signed; the signature is {said}.")
    if value["report"] == "checked":
        console.print("The card and the report say what their data say.")
    elif value["card"]:
        console.print("The card says what its data say; the report has its checksum (matplotlib would draw it again).")
    for name, obstacles in (value["capture"] or {}).items():
        said = escape("; ".join(obstacles)) or "nothing in it breaks capture"
        console.print(f"CUDA graph of {escape(name)}: {said}.")
    if canary := value["canary"]:
        asked = f"{canary['asked']} canaries give what they gave, under {', '.join(canary['providers'])}"
        console.print(f"{asked}; the unmodified model would fail {canary['telling']} of them.")
    if value["parity"]:
        parity(console, value["parity"])
    if value["swap"]:
        console.print("With the swapped adapter, and after it was taken out again:")
        parity(console, value["swap"])
