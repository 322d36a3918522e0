"""``retrieval.json`` and ``retrieval_accuracy.json``: what texts come from, and how often the right one comes."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from ..artifact.manifest import RetrievalInfo, Strict
from ..section import Section


class Accuracy(Strict):
    """How many of ``n`` left-out pictures find their own caption first, and among the first five.

    Written by :func:`safetykit.adapters.retrieval.fit.accuracy`.
    """

    n: int
    top1: int
    top5: int

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not 0 <= self.top1 <= self.top5 <= self.n or not self.n:
            raise ValueError("the counts do not fit their total")
        return self


class RetrievalAccuracy(Strict):
    """The attachment.

    Attributes:
        among: how many texts there are to choose from.
        unseen_picture: of pictures that the query was not fitted on, but whose caption it saw with others.
        unseen_caption: of pictures whose caption it never saw.
    """

    among: int
    unseen_picture: Accuracy | None
    unseen_caption: Accuracy | None

    @property
    def rows(self) -> dict[str, Accuracy]:
        """Those that were measured, for people."""
        found = {"picture, caption seen with others": self.unseen_picture, "picture and caption": self.unseen_caption}
        return {name: accuracy for name, accuracy in found.items() if accuracy}


SECTIONS = (
    Section.beside(__file__, "retrieval", RetrievalInfo),
    Section.beside(__file__, "retrieval_accuracy", RetrievalAccuracy),
)
