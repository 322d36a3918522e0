"""TGA's retrieval as a method."""

from __future__ import annotations

from ..method import Method
from .settings import Retrieval

METHOD = Method(
    name="retrieval",
    title="TGA retrieval",
    recorded="TGA retrieval",
    summary="TGA's retrieval: the query that finds a picture's caption, with the index in the graph or beside it.",
    settings=Retrieval,
    fit="safetykit.adapters.retrieval.fit:fit_on",
    example="--k 5 --correction 0.5",
    data="captions",
    takes=("index", "encoder", "with"),
    needs=("index",),
    ops=("safetykit.adapters.retrieval.retrieval",),
    sections="safetykit.adapters.retrieval.section:SECTIONS",
)
