"""What a defence is: something that answers by asking another model, which may be asked several times an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

from ...adapters.errors import BatchRefused, RequestRefused
from ..model.requests import Generation, Request, Turn


class Asked(Protocol):
    """What is asked: a VLM, an opened export, or a server's model (see ``Generator`` in ``toolkit.evaluation``)."""

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]: ...


class Defence(ABC):
    """A model that is asked in a safer way; it answers as the model does that it wraps.

    Requests without a picture are asked as they are. So are the operator's turn (``system``) and earlier turns: only
    what the user asks last is worded anew.

    Args:
        model: what is asked.

    Attributes:
        name: as people type it.
        summary: one sentence, for help and tables.
        defence: the name, which an evaluation keeps.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, model: Asked) -> None:
        self._model = model
        self.path = getattr(model, "path", type(model).__name__)
        self.ran = getattr(model, "ran", None)

    @property
    def defence(self) -> str:
        return self.name

    @abstractmethod
    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        """Answer a batch; each answer says how many ``calls`` of the model it took.

        Raises:
            RequestRefused: a request cannot be answered, as the model refuses it or with what the defence adds to it.
        """

    def ask(self, requests: Mapping[int, Request], count: int, max_new_tokens: int) -> dict[int, Generation]:
        """Ask the model some requests of a batch of ``count``, by their places in it.

        Raises:
            RequestRefused: one cannot be answered; it is named by its place in the batch.
        """
        places = list(requests)
        if not places:
            return {}
        try:
            answers = self._model.generate([requests[at] for at in places], max_new_tokens)
        except BatchRefused as error:
            first = next(iter(error.refused.values()))
            raise _placed(first, places, requests, count) from None
        except RequestRefused as error:
            raise _placed(error, places, requests, count) from None
        return dict(zip(places, answers, strict=True))


def _placed(
    error: RequestRefused, places: Sequence[int], requests: Mapping[int, Request], count: int
) -> RequestRefused:
    at = places[error.at]
    return RequestRefused(at, count, requests[at].prompt, error.reason)


def worded(request: Request, prompt: str) -> Request:
    """The same request with another last prompt; its pictures, system turn and earlier turns stay."""
    turns = request.turns
    if turns:
        turns = (*turns[:-1], Turn(turns[-1].role, (*turns[-1].pictures, prompt)))
    return replace(request, prompt=prompt, turns=turns)
