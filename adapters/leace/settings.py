"""What may be chosen about LEACE; :mod:`.leace` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from ..artifact.sites import Phase, Scope
from ..layers import Layers
from ..method import load
from ..ranges import Strength
from ..settings import Settings, setting
from .choices import Concept, Variant

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, StateSource
    from .statistics import ConceptStatistics

Where = Literal["block", "mlp", "attn"]

_CODE = "safetykit.adapters.leace.leace"


class LEACE(Settings):
    """Fits LEACE; see :mod:`safetykit.adapters.leace.leace` for the mathematics."""

    variant: Variant = setting(
        "least-squares", "The smallest change that erases the concept, or an orthogonal projection, which changes more."
    )
    concept: Concept = setting(
        "modality", "What is erased: whether there is a picture, or, as a control that takes refusals away, harm."
    )
    layers: Layers | None = setting(
        None, "Decoder layers that are changed, from 0, such as 3-5 or 2,4.", shown="the middle one"
    )
    site: Where = setting("block", "Output that is changed; at mlp and attn it can fold into weights.")
    beta: Strength = setting(1.0, "β, the share that is erased.")
    scope: Scope = setting("all", "Tokens that are changed.")
    phase: Phase = setting("prefill", "While the prompt is read, while the answer is written, or both.")

    def fit(self, model: StateSource, records: Iterable[Example]) -> Adapter:
        """Fit on the ``fit`` split.

        Raises:
            UsageError: one side of the concept is missing, or a layer does not exist or holds nothing of it.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records)
        return adapter

    def solve(self, model: StateSource, statistics: ConceptStatistics, records: Sequence[Example]) -> Adapter:
        """Turn collected statistics into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, statistics, records)
        return adapter
