"""What may be chosen about retrieval; :mod:`.retrieval` says what the choices mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from ..method import load
from ..settings import Settings, setting

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from .sources import PictureSource

# Beyond, a graph answers more slowly than FAISS and its file grows by gigabytes (bench/retrieval.py).
IN_GRAPH_LIMIT = 100_000


class Retrieval(Settings):
    """Fits retrieval; see :mod:`safetykit.adapters.retrieval.retrieval` for the mathematics."""

    k: int = setting(3, "Texts per picture.", ge=1)
    correction: float | None = setting(
        None,
        "γ: share of the way that image tokens move towards the texts.",
        acts={"external": False},
        shown="none",
        gt=0,
        le=1,
    )
    prefix: bool = setting(False, "Put the retrieved texts before the prompt.")
    external: bool = setting(
        False, "Keep the index out of the graph; the runtime searches it.", option="external-index"
    )
    in_graph_limit: int = setting(
        IN_GRAPH_LIMIT, "Most texts that are put into a graph.", acts={"external": False}, ge=1
    )

    @property
    def variant(self) -> str:
        """As the manifest has it."""
        return "external" if self.external else "top-k" if self.correction is None else "correction"

    def fit(self, source: PictureSource, *, corrected_by: Sequence[Mapping[str, JsonValue]] = ()) -> Adapter:
        """Fit the query on captioned pictures.

        Args:
            source: a model's view of captioned pictures, and the index that is searched.
            corrected_by: which correctors are applied to the model, for the manifest.

        Raises:
            UsageError: too many or too few texts, or captions without a key.
        """
        adapter: Adapter = load("safetykit.adapters.retrieval.fit:fit")(self, source, corrected_by=corrected_by)
        return adapter
