"""``retrieval.json``: which index texts are retrieved from for a picture."""

from __future__ import annotations

from ...adapters.manifest import RetrievalInfo
from .section import Section

RETRIEVAL = Section("retrieval", RetrievalInfo)
