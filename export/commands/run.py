"""`safetykit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.common import reads_artifacts
from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Json
from .choices import RunOptions

if TYPE_CHECKING:
    from rich.console import Console


@reads_artifacts
@takes(RunOptions)
def run(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    options: RunOptions,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What the user says; repeat for a batch.", show_default=False)
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="One for all prompts, one each, or several for a single one.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            help="A conversation in the place of a prompt: a JSON list of turns, pictures as paths beside the file.",
        ),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Drop the oldest turns of --messages, and say so, where they are too long."),
    ] = False,
    as_json: Json = False,
) -> None:
    from ...adapters.errors import UsageError
    from ...toolkit.commands import console
    from ...toolkit.data.sources import is_checkpoint
    from ..runtime.answer import answer

    if is_checkpoint(folder):
        raise UsageError(
            f"{folder} is a checkpoint, and run answers with exports.",
            f"Export it with `safetykit export {folder} -o export`; `safetykit eval {folder}` answers records with it.",
        )

    if prompt and messages is not None:
        raise UsageError("--prompt and --messages both say what is asked.", "Leave out one of them.")
    if not prompt and messages is None:
        raise UsageError("There is nothing to answer.", "Pass --prompt, or a conversation with --messages.")
    if messages is not None and (image or options.given("system")):
        said = "--image" if image else "--system"
        raise UsageError(f"{said} does nothing with --messages.", "Put it into the conversation.")
    if truncate and messages is None:
        raise UsageError("--truncate does nothing without --messages: a prompt has no earlier turns.", "Leave it out.")
    swaps = "an adapter to swap in (--swap)"
    options.require_use(("allow_uncorrected_detector",), bool(options.swap), swaps)
    with console.steps() as say:
        result = answer(
            folder,
            prompt or [],
            image or [],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            providers=options.providers,
            external_index=options.external_index,
            swap=options.swap,
            allow_uncorrected_detector=options.allow_uncorrected_detector,
            system=options.system,
            messages=messages,
            max_prompt_tokens=options.max_prompt_tokens,
            truncate=truncate,
            prompt_chunk=options.prompt_chunk,
            progress=say,
        )
    if dropped := result[0].get("dropped_turns"):
        shown = f", with {result[0]['dropped_pictures']} of its pictures" if result[0]["dropped_pictures"] else ""
        console.warn(f"the conversation is too long: its first {dropped} turns were dropped{shown}.")
    console.emit(result, as_json=as_json, human=_view)
    if failed := {number: item["error"] for number, item in enumerate(result, 1) if "error" in item}:
        for number, told in failed.items():
            console.complain(f"Prompt {number}: {told['message']}", told["next_step"])
        raise typer.Exit(max(told["exit_code"] for told in failed.values()))


def _view(console: Console, value: list[dict[str, Any]]) -> None:
    """`safetykit run`: the answers alone, one per line; what cannot be answered is told on stderr."""
    for item in value:
        if "error" not in item:
            console.print(item["text"], markup=False, soft_wrap=True)
