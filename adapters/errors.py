"""Every error a user can meet, with the exit code the command line returns for it.

An error is two sentences: what was wrong (``message``) and what to do next (``next_step``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 60  # characters of a prompt by which it is named


class SafetykitError(Exception):
    """Base of all errors safetykit raises on purpose.

    Args:
        message: what was wrong, naming the file, site or value.
        next_step: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class UsageError(SafetykitError):
    """The request itself cannot be carried out (missing file, unknown site, empty split)."""

    exit_code = 2


class BudgetNotKept(UsageError):
    """No choice of a fit keeps the budget that it was given."""


class RequestRefused(UsageError):
    """One request of a batch cannot be answered.

    Attributes:
        at: its place in the batch, from 0.
        reason: what is wrong with it.
    """

    def __init__(self, at: int, count: int, prompt: str, reason: SafetykitError) -> None:
        said = prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}…"
        named = f"Request {at + 1} of {count} ({said!r}): " if count > 1 else ""
        super().__init__(f"{named}{reason.message}", reason.next_step)
        self.exit_code = reason.exit_code
        self.at, self.reason = at, reason

    @property
    def refused(self) -> Mapping[int, RequestRefused]:
        """It alone, by its place."""
        return {self.at: self}


class TooLong(UsageError):
    """A prompt has more tokens than are accepted."""


class BatchRefused(UsageError):
    """Some requests of a batch cannot be answered; the others were.

    Attributes:
        refused: what is wrong with each of them, by its place in the batch, from 0.
        answers: of all requests, in their order; None of those that cannot be answered.
    """

    def __init__(self, refused: Mapping[int, RequestRefused], answers: Sequence[Any]) -> None:
        first = next(iter(refused.values()))
        others = f" ({len(refused) - 1} more cannot be answered either.)" if len(refused) > 1 else ""
        super().__init__(f"{first.message}{others}", f"{first.next_step} The other answers are in `answers`.".strip())
        self.exit_code = first.exit_code
        self.refused, self.answers = dict(refused), list(answers)


class InvalidArtifact(SafetykitError):
    """An adapter, export or record file is malformed, truncated or was changed."""

    exit_code = 3


class UnsupportedGraph(InvalidArtifact):
    """An ONNX graph that safetykit does not understand; it is refused, never patched on a guess."""


class WrongBase(SafetykitError):
    """An adapter was fitted on another base model than the one it is asked to change."""

    exit_code = 4


class ParityFailed(SafetykitError):
    """The exported model does not do what the PyTorch model does."""

    exit_code = 5


class SignatureFailed(SafetykitError):
    """An artifact is not signed by whom the policy accepts."""

    exit_code = 6


class ProcessLost(SafetykitError):
    """Of several processes that share the work, one is gone."""

    exit_code = 7

    def __init__(self, message: str, next_step: str = "") -> None:
        again = "The launcher names it. The same command can be run again, on any number of processes."
        super().__init__(message, next_step or again)


class OutputFailed(SafetykitError):
    """The system would not write: the disk is full or read-only, or permission is missing."""

    exit_code = 8


class ServerFailed(SafetykitError):
    """A server that is asked does not answer, or not as it should."""

    exit_code = 9


class LeftBehind(UserWarning):
    """What a process that was killed had left of an output was cleared, or put back."""


class Unread(UserWarning):
    """A file, or a part of one, that one would think is read is not."""


def told(error: SafetykitError) -> dict[str, Any]:
    """An error as JSON tells it."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "next_step": error.next_step,
        "exit_code": error.exit_code,
    }
