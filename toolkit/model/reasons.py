"""What an error of another library says, in one line."""

from __future__ import annotations

_MOST = 300  # characters


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, with the next where it ends with a colon, or what the error is called."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:_MOST]
