"""Usage errors of the option parser in the same two lines as all others, with a near miss where there is one."""

from __future__ import annotations

from typing import Any

from ...adapters.near import did_you_mean


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
        return message, f"{did_you_mean(wrong, known)} {asked} lists the options.".strip(), error.exit_code
    message = error.format_message().strip()
    if message.startswith("No such command"):
        message = message.partition(" Did you mean ")[0]  # the parser's own guess, which goes further than ours
        typed = message.partition("'")[2].partition("'")[0]
        hint = did_you_mean(typed, list(context.command.commands))
        return message, f"{hint} {asked} lists the commands.".strip(), error.exit_code
    example = (context.command.epilog or "").partition("Example: ")[2].strip()
    shown = f"For example `{example}`; {asked}" if example else asked
    return message, f"{shown} says what it takes.", error.exit_code
