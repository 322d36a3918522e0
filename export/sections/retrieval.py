"""``retrieval.json`` and ``retrieval_accuracy.json``: what texts are retrieved from, and how often the right one comes."""

from __future__ import annotations

from ...adapters.manifest import RetrievalInfo, Strict
from .section import Section


class Accuracy(Strict):
    """How often a left-out picture's own caption is among the first texts."""

    n: int
    top1: float
    top5: float


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


RETRIEVAL = Section("retrieval", RetrievalInfo)
ACCURACY = Section("retrieval_accuracy", RetrievalAccuracy)
