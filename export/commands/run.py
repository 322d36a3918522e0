"""`safetykit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.options import ExternalIndex, Json, MaxNewTokens, Provider, Swap, System

if TYPE_CHECKING:
    from rich.console import Console


def run(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="What the user says; repeat for a batch.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="One for all prompts, one each, or several for a single one.")
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    swap: Swap = None,
    system: System = "",
    external_index: ExternalIndex = None,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Generate with the exported model under ONNX Runtime."""
    from ...toolkit.commands import console
    from ..runtime.answer import answer
    from ..runtime.sessions import CPU

    result = answer(
        folder,
        prompt,
        image or [],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        providers=provider or CPU,
        external_index=external_index,
        swap=swap or [],
        system=system,
    )
    console.emit(result, as_json=as_json, human=_view)


def _view(console: Console, value: list[dict[str, Any]]) -> None:
    """`safetykit run`: the answers alone, one per line."""
    for item in value:
        console.print(item["text"], markup=False, soft_wrap=True)
