"""Every error a user can meet, with the exit code the command line returns for it.

An error is two sentences: what was wrong (``message``) and what to do next (``next_step``).
"""

from __future__ import annotations


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


class ProcessLost(SafetykitError):
    """Of several processes that share the work, one is gone."""

    exit_code = 7

    def __init__(self, message: str, next_step: str = "") -> None:
        again = "The launcher names it. The same command can be run again, on any number of processes."
        super().__init__(message, next_step or again)


class OutputFailed(SafetykitError):
    """The system would not write: the disk is full or read-only, or permission is missing."""

    exit_code = 8


class LeftBehind(UserWarning):
    """What a process that was killed had left of an output was cleared, or put back."""
