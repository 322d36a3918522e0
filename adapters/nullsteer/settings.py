"""What may be chosen about NullSteer; :mod:`.nullsteer` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from ..errors import UsageError
from ..layers import Layers
from ..method import load
from ..settings import Settings, setting, spell
from .choices import Harmful, Harmless, Towards

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example
    from .statistics import NullStatistics, Source

Variant = Literal["rank-one", "low-rank"]
Constraint = Literal["penalty", "projection"]
Where = Literal["block", "mlp", "attn"]

_CODE = "safetykit.adapters.nullsteer.nullsteer"


class NullSteer(Settings):
    """Fits NullSteer; see :mod:`safetykit.adapters.nullsteer.nullsteer` for the mathematics."""

    variant: Variant = setting(
        "rank-one", "One refusal direction for all, or one a category within the best subspace of some rank (low-rank)."
    )
    rank: int = setting(2, "Dimension of that subspace.", acts={"variant": "low-rank"}, ge=1)
    harmful: Harmful = setting("text", "Harmful records that must move: text only, or those with a picture too (both).")
    harmless: Harmless = setting(
        "tokens", "Harmless states that must stay: of the tokens of prompts and responses, or the prompts' last ones."
    )
    towards: Towards = setting(
        "refused", "Whose mean text state is moved to: of harmful requests that the model refused, or of all harmful."
    )
    layers: Layers | None = setting(
        None, "Decoder layers that are changed, from 0, such as 3-5 or 2,4.", shown="the middle one"
    )
    site: Where = setting("block", "Output that is changed; at mlp and attn it can fold into weights.")
    strength: float = setting(1.0, "λ while the prompt is read.", ge=0)
    decode_strength: float | None = setting(
        None, "λ while the answer is written.", shown="twice the strength; at mlp and attn the same", ge=0
    )
    constraint: Constraint = setting(
        "penalty", "How harmless states are held: by a penalty on moving them, or by projection to their null space."
    )
    penalty: float = setting(1.0, "γ, what moving a harmless state counts.", acts={"constraint": "penalty"}, gt=0)
    dropped: int | None = setting(
        None,
        "Directions of harmless states, strongest first, that are left alone.",
        acts={"constraint": "projection"},
        shown="a sixteenth of the width",
        ge=0,
    )
    variance: float | None = setting(
        None,
        "Leave alone as many directions as hold this share of harmless states, instead of a number.",
        acts={"constraint": "projection"},
        gt=0,
        lt=1,
    )
    ridge: float = setting(0.1, "a, as a share of the mean squared component of harmful states.", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_null_space(cls, given: Any) -> Any:
        """Before it is asked whether both act: of two that exclude each other one is too many anyway."""
        if isinstance(given, dict) and given.get("dropped") is not None and given.get("variance") is not None:
            names = [spell(cls, name) for name in ("dropped", "variance")]
            raise UsageError(f"{names[0]} and {names[1]} both say what is left alone.", "Give one of them.")
        return given

    @model_validator(mode="after")
    def _somewhen(self) -> Self:
        if not any(self.strengths):
            raise UsageError(
                "With a strength of 0 in both phases nothing is changed.",
                f"Raise {spell(type(self), 'strength')} or {spell(type(self), 'decode_strength')}.",
            )
        return self

    @property
    def strengths(self) -> tuple[float, float]:
        """λ at prefill and in decoding; the same where that lets the change fold into weights."""
        factor = 2.0 if self.site == "block" else 1.0
        return self.strength, factor * self.strength if self.decode_strength is None else self.decode_strength

    def fit(self, model: Source, records: Iterable[Example], *, outcomes: Mapping[str, str] | None = None) -> Adapter:
        """Fit on the ``fit`` split.

        Args:
            outcomes: towards ``refused`` states, what the bare model does with harmful records, by id.

        Raises:
            UsageError: records of a label or carrier are missing, or refused ones, or a layer does not exist.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, outcomes=outcomes)
        return adapter

    def solve(self, model: Source, statistics: NullStatistics, records: Sequence[Example]) -> Adapter:
        """Turn collected statistics into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, statistics, records)
        return adapter
