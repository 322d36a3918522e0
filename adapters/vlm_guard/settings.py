"""What may be chosen about VLM-Guard; :mod:`.guard` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from ..artifact.sites import Phase, Scope
from ..errors import UsageError
from ..layers import Layers
from ..method import load
from ..ranges import Strength
from ..settings import Settings, setting, spell
from ..statistics.choices import Direction

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, StateSource
    from .statistics import GuardStatistics

Variant = Literal["orthogonal", "steer", "supervised", "target"]
Gate = Literal["paper", "calibrated", "whitened"]
Where = Literal["block", "mlp", "attn"]

_GATED = ("steer", "supervised", "target")
_CODE = "safetykit.adapters.vlm_guard.guard"


class VLMGuard(Settings):
    """Fits VLM-Guard; see :mod:`safetykit.adapters.vlm_guard.guard` for the mathematics."""

    variant: Variant = setting(
        "steer", "orthogonal removes the direction; steer, supervised and target push along it behind a gate."
    )
    direction: Direction = setting("svd", "Safety direction: svd of the paired differences, or mean of all texts.")
    gate: Gate = setting(
        "paper",
        "Opens on h·v > 0 (paper), above a calibrated threshold, or whitened: one threshold for both modalities.",
        acts={"variant": _GATED},
    )
    layers: Layers | None = setting(
        None, "Decoder layers that are changed, from 0, such as 3-5 or 2,4.", shown="the middle one"
    )
    site: Where = setting(
        "block", "Output that is changed; at mlp and attn it folds into weights.", acts={"variant": "orthogonal"}
    )
    rank: int = setting(2, "m, the dimension of the subspace.", ge=1)
    alpha: Strength = setting(2.0, "α, the strength.", acts={"variant": _GATED})
    false_positive_rate: float = setting(
        0.02,
        "Share of harmless calibration records whose gate may open, per layer.",
        acts={"gate": ("calibrated", "whitened"), "variant": _GATED},
        ge=0,
        lt=1,
    )
    scope: Scope = setting("last", "Which tokens are changed: all, vision, text or the last one.")
    phase: Phase = setting("prefill", "When: while the prompt is read, while the answer is written, or both.")
    hold: bool = setting(
        False,
        "Keep the prompt's decision while the answer is written, instead of deciding per token.",
        acts={"variant": _GATED, "phase": ("decode", "both")},
    )

    allow_constant_gate: bool = setting(
        False,
        "Accept a gate that is open, or closed, on all that the fit has seen; manifest and card say so.",
        acts={"variant": _GATED},
    )

    @model_validator(mode="after")
    def _second_branch_at_prefill(self) -> Self:
        if self.variant == "supervised" and self.phase != "prefill":
            raise UsageError(
                "The supervised variant has its second branch at prefill only.",
                f"Leave out {spell(type(self), 'phase')} or use prefill.",
            )
        return self

    def fit(self, model: StateSource, records: Iterable[Example], *, text_model: StateSource | None = None) -> Adapter:
        """Fit on the ``fit`` split (text pairs) and calibrate on the ``calibration`` split.

        Args:
            model: the VLM that will run with the adapter.
            records: with splits; ``typographic`` and other visual carriers are never used for directions.
            text_model: a separate aligned language model of the same depth and width; by default the
                VLM's own decoder.

        Raises:
            UsageError: a split or a label is empty, or a layer does not exist.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, text_model=text_model)
        return adapter

    def solve(self, model: StateSource, statistics: GuardStatistics, records: Sequence[Example]) -> Adapter:
        """Turn collected statistics into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, statistics, records)
        return adapter
