"""Handing out an answer token by token, by transformers' protocol for streamers; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from ...adapters.errors import UsageError
from .requests import Request


class Streamer(Protocol):
    """What transformers' ``TextStreamer`` and its like have."""

    def put(self, value: Any) -> None:
        """Take the prompt's token ids [1, seq] first, then those of the answer one by one [1]."""

    def end(self) -> None:
        """The answer is complete."""


class AnswerStream:
    """A streamer that gets exactly the tokens of the answer: no end of sequence, and nothing that is refused.

    Whether a detector refuses is known once the prompt was read; its fixed answer then stands for the model's.

    Args:
        streamer: where tokens go.
        ends: ids that end an answer.
        risk: a detector's log-odds of harm less its threshold, asked after the prompt; None without a detector.
        refusal: token ids of the fixed answer.
        shaped: makes token ids what ``streamer`` takes.
    """

    def __init__(
        self,
        streamer: Streamer,
        ends: Collection[int],
        risk: Callable[[], float] | None,
        refusal: Sequence[int],
        shaped: Callable[[list[int]], Any],
    ) -> None:
        self._streamer, self._ends, self._shaped = streamer, ends, shaped
        self._risk, self._refusal = risk, refusal
        self._begun = False
        self._answers: bool | None = None

    def put(self, value: Any) -> None:
        """Pass on the prompt, then tokens of the answer."""
        if not self._begun:
            self._begun = True
            self._streamer.put(value)
            return
        if self._answers is None:
            # Only a risk of at most 0 is answered: one that is no number is not.
            self._answers = self._risk is None or self._risk() <= 0
        if self._answers and not {int(token) for token in value.tolist()} & set(self._ends):
            self._streamer.put(value)

    def end(self) -> None:
        """End the answer, after the refusal if there is one."""
        if self._risk is not None and self._risk() > 0:
            for token in self._refusal:
                self._streamer.put(self._shaped([token]))
        self._streamer.end()


def require_one(requests: Sequence[Request]) -> None:
    """Refuse to stream a batch.

    Raises:
        UsageError: there are several requests.
    """
    if len(requests) > 1:
        raise UsageError(f"{len(requests)} answers cannot go to one streamer.", "Stream one request at a time.")
