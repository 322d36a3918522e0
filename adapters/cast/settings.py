"""What may be chosen about CAST; :mod:`.cast` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from ..errors import UsageError
from ..layers import Layer, Layers
from ..method import load
from ..ranges import Strength
from ..settings import Settings, setting, spell
from .choices import Condition

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, StateSource
    from .statistics import ConditionStatistics

_CODE = "safetykit.adapters.cast.cast"


class CAST(Settings):
    """Fits CAST; see :mod:`safetykit.adapters.cast.cast` for the mathematics."""

    condition: Condition = setting(
        "pca", "Condition vector: first principal component of harmful and harmless text states, or their difference."
    )
    condition_layer: Layer | None = setting(
        None, "Decoder layer whose state is compared, from 0.", shown="that of the best F1 on calibration records"
    )
    layers: Layers | None = setting(
        None, "Decoder layers that are pushed, from 0, such as 3-5 or 2,4.", shown="the middle one"
    )
    alpha: Strength = setting(1.0, "α, the strength.")
    allow_constant_gate: bool = setting(
        False, "Accept a gate that is open, or closed, on all that the fit has seen; manifest and card say so."
    )

    @model_validator(mode="after")
    def _read_before_pushed(self) -> Self:
        if self.layers is not None:
            self.readable(self.layers)
        return self

    def readable(self, pushed: Sequence[int]) -> tuple[int, ...]:
        """Layers at which the condition may be read: those before anything is pushed, or the only one that is.

        Raises:
            UsageError: the given one comes later, or there is none.
        """
        most = min(pushed) - (len(set(pushed)) > 1)
        layers = tuple(range(most + 1)) if self.condition_layer is None else (self.condition_layer,)
        if not layers or max(layers) > most:
            raise UsageError(
                "The condition has to be read before anything is pushed, "
                f"and layer {min(pushed)} is the first that is.",
                f"Choose later {spell(type(self), 'layers')}, or an earlier {spell(type(self), 'condition_layer')}.",
            )
        return layers

    def fit(self, model: StateSource, records: Iterable[Example]) -> Adapter:
        """Fit on the text of the ``fit`` split; threshold and condition layer are chosen on the ``calibration`` split.

        Raises:
            UsageError: a split lacks a label, a layer does not exist, or the condition decides nothing.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records)
        return adapter

    def solve(self, model: StateSource, statistics: ConditionStatistics, records: Sequence[Example]) -> Adapter:
        """Turn collected statistics into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, statistics, records)
        return adapter
