"""Conversations that are too long, without their oldest turns; only where somebody asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...adapters.errors import RequestRefused, SafetykitError, TooLong
from .inputs import InputProcessor
from .requests import Generation, Request


class Shortened(NamedTuple):
    """What is left of a conversation.

    Attributes:
        turns: how many were dropped.
        pictures: how many they showed.
    """

    request: Request
    turns: int = 0
    pictures: int = 0


def shortened(inputs: InputProcessor, request: Request) -> Shortened:
    """A conversation without as many of its oldest turns as make it short enough.

    A user's turn goes with the answers to it. The system turn stays, and so does the last turn, with what it shows.

    Raises:
        RequestRefused: it is too long even then, or cannot be asked for another reason.
    """
    left = request
    while True:
        try:
            inputs.prepare([left])
        except RequestRefused as error:
            if not isinstance(error.reason, TooLong) or (shorter := _without_oldest(left)) is None:
                raise
            left = shorter
        else:
            dropped = len(request.turns) - len(left.turns)
            return Shortened(left, dropped, len(request.pictures) - len(left.pictures))


class Shortening:
    """A model that answers conversations which are too long without their oldest turns, and says so of each answer.

    Args:
        model: has :attr:`inputs`, and generates.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.path = getattr(model, "path", type(model).__name__)
        self.ran = getattr(model, "ran", None)

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        """Answer a batch; ``dropped_turns`` of each answer says how many turns the model did not see."""
        short = [shortened_if_possible(self._model.inputs, request) for request in requests]
        answers = self._model.generate([one.request for one in short], max_new_tokens)
        return [replace(answer, dropped_turns=one.turns) for answer, one in zip(answers, short, strict=True)]


def shortened_if_possible(inputs: InputProcessor, request: Request) -> Shortened:
    """The same; a request that cannot be asked even so stays as it is, and whoever is asked says what is wrong."""
    if not request.turns:
        return Shortened(request)  # of a prompt there is nothing to drop
    try:
        return shortened(inputs, request)
    except SafetykitError:
        return Shortened(request)


def _without_oldest(request: Request) -> Request | None:
    """The conversation from its second turn of a user on; None where that is the last one already."""
    begins = [at for at, turn in enumerate(request.turns) if turn.role == "user" and at]
    if not begins:
        return None
    turns = request.turns[begins[0] :]
    return replace(request, image=tuple(one for turn in turns for one in turn.pictures), turns=turns)
