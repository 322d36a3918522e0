"""What may be chosen about the refusal direction; :mod:`.direction` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from ..layers import Layer
from ..method import load
from ..ranges import seed_setting
from ..settings import Settings, setting

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, StateSource
    from .statistics import Means

Variant = Literal["addition", "ablation", "random"]

_CODE = "safetykit.adapters.refusal_direction.direction"


class RefusalDirection(Settings):
    """Fits the refusal direction; see :mod:`safetykit.adapters.refusal_direction.direction` for the mathematics."""

    variant: Variant = setting(
        "addition",
        "addition pushes every state towards refusal; ablation, which takes refusal away, and random, which pushes as "
        "far along a direction that was drawn, are controls.",
    )
    layer: Layer | None = setting(None, "Decoder layer that the direction is read at, from 0.", shown="the middle one")
    strength: float = setting(
        1.0, "How much of the direction is added.", acts={"variant": ("addition", "random")}, gt=0
    )
    seed: int = seed_setting("Of the direction that is drawn.", acts={"variant": "random"})

    def fit(self, model: StateSource, records: Iterable[Example]) -> Adapter:
        """Fit on the harmful and harmless *text* of the ``fit`` split.

        Raises:
            UsageError: records of a label are missing, or the layer does not exist.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records)
        return adapter

    def solve(self, model: StateSource, means: Means, records: Sequence[Example]) -> Adapter:
        """Turn collected means into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, means, records)
        return adapter
