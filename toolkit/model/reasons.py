"""What an error of another library says, in one line."""

from __future__ import annotations

_MOST = 300  # characters


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or what it is called."""
    said = str(error).strip()
    return said.splitlines()[0][:_MOST] if said else type(error).__name__
