"""Conversations that are too long, without their oldest turns; only where somebody asks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ...adapters.errors import RequestRefused, TooLong
from .inputs import InputProcessor
from .requests import Request


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


def _without_oldest(request: Request) -> Request | None:
    """The conversation from its second turn of a user on; None where that is the last one already."""
    begins = [at for at, turn in enumerate(request.turns) if turn.role == "user" and at]
    if not begins:
        return None
    turns = request.turns[begins[0] :]
    return replace(request, image=tuple(one for turn in turns for one in turn.pictures), turns=turns)
