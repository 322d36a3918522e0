"""Usage errors of the option parser in the same two lines as all others, with a near miss where there is one."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def near_miss(wrong: str, known: list[str]) -> str:
    """``Did you mean 'export'?``, or nothing where nothing is near."""
    found = get_close_matches(wrong, known, n=1)
    return f"Did you mean {found[0]!r}?" if found else ""


def explain_usage(error: Any) -> tuple[str, str, int]:
    """What was wrong, what to do next, and the exit code, of an error that the option parser raised."""
    message = str(getattr(error, "message", "") or error.format_message()).strip()
    context = getattr(error, "ctx", None)
    if context is None:
        return message, "", error.exit_code
    asked = f"`{context.command_path} --help`"
    wrong = getattr(error, "option_name", None)
    if wrong is not None and type(error).__name__ == "NoSuchOption":
        known = [spelled for param in context.command.params for spelled in (*param.opts, *param.secondary_opts)]
        return message, f"{near_miss(wrong, known)} {asked} lists the options.".strip(), error.exit_code
    message = error.format_message().strip()
    if message.startswith("No such command"):
        # The parser appends its own guess to the message.
        message, _, guess = message.partition(" Did you mean ")
        hint = f"Did you mean {guess}" if guess else ""
        return message, f"{hint} {asked} lists the commands.".strip(), error.exit_code
    return message, f"{asked} says what it takes.", error.exit_code
