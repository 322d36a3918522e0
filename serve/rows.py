"""What a scheduler schedules: rows, the engine that decodes them, and why a row gets no answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from ..adapters.errors import SafetykitError


class Busy(SafetykitError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting, and no more are accepted.", f"Try again in {retry_after} s.")
        self.retry_after = retry_after


class Draining(SafetykitError):
    """The server is about to end and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", "Ask another one, or try again later.")


class Broken(SafetykitError):
    """What answers has ended, and nothing is answered any more."""

    def __init__(self) -> None:
        super().__init__("The server is broken and ends.", "Ask another one, or again once it was started again.")


class TimedOut(SafetykitError):
    """A row was not answered in its time."""

    def __init__(self) -> None:
        super().__init__("The request was not answered in time.", "Ask for a shorter answer, or try again later.")


class Engine(Protocol):
    """A model whose batches can be joined and split; called by one thread. A state is the engine's own."""

    def use(self, variant: Any) -> None:
        """Read prompts with this variant from now on; no batch is there."""

    def begin(self, rows: Sequence[Any]) -> Any:
        """The state of these rows after their prompts."""

    def step(self, state: Any, tokens: Sequence[int | None]) -> Any:
        """The state after one more token of each row; None for rows that nobody hears any more."""

    def join(self, parts: Sequence[tuple[Any, Sequence[int]]]) -> Any:
        """One state of some rows of several, each given with their places, in their order."""


class Row:
    """One answer in the making; a subclass says how, called by the scheduler's thread only.

    Attributes:
        client: whose it is; clients take turns.
        variant: which of the engine's variants answers.
        kind: prompts of one kind are read together; others, whose lengths differ much, would only be padded.
        deadline: by the scheduler's clock; None for no limit.
    """

    client: Hashable = None
    variant: Hashable = None
    kind: Hashable = None
    deadline: float | None = None
    cancelled = False

    def advance(self, state: Any, at: int) -> int | None:
        """Choose the next token of row ``at`` of ``state``; None where the answer is complete."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        """There will be no (further) answer."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more; from any thread."""
        self.cancelled = True
