"""What may be chosen about TGA, and what trains by it; :mod:`.tga` says what the choices mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

from pydantic import JsonValue, model_validator

from ..artifact.sites import Site
from ..errors import UsageError
from ..layers import Layers
from ..method import load
from ..ranges import seed_setting
from ..settings import POSITIVE, Settings, setting

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..artifact.manifest import BaseInfo, DataInfo
    from ..artifact.updates import WeightUpdate

Variant = Literal["projector", "low-rank", "lora", "closed-form"]
_RATES: dict[str, float] = {"projector": 5e-4, "low-rank": 3e-3, "lora": 1e-3, "closed-form": 1.0}
_TRAINED = ("projector", "low-rank", "lora")


class TGA(Settings):
    """Fits TGA; see :mod:`safetykit.adapters.tga.tga` for the mathematics."""

    variant: Variant = setting(
        "lora", "What is trained: the projector, low-rank changes of it, lora of projector and decoder; or closed-form."
    )
    layers: Layers | None = setting(
        None, "Aligned decoder layers, from 0, such as 3-5 or 2,4.", shown="all from a quarter of the depth on"
    )
    guide_weight: float = setting(0.1, "Of the picture's terms, per layer.", acts={"variant": _TRAINED}, ge=0)
    centred: bool = setting(
        True, "Subtract means before the cosine.", acts={"variant": _TRAINED, "guide_weight": POSITIVE}
    )
    retrieval: bool = setting(
        True,
        "Include the term with retrieved text.",
        acts=({"variant": _TRAINED, "guide_weight": POSITIVE}, {"variant": _TRAINED, "prefixed": POSITIVE}),
    )
    prefixed: float = setting(
        0.0,
        "Share of rows with the retrieved text before the instruction.",
        acts={"variant": _TRAINED, "retrieval": True},
        ge=0,
        le=1,
    )
    request_weight: float = setting(0.5, "Of the request's states after the picture.", acts={"variant": _TRAINED}, ge=0)
    opening_weight: float = setting(1.0, "Of the first answer token.", acts={"variant": _TRAINED}, ge=0)
    shuffled: float = setting(
        0.5, "Share of requests drawn from other pictures.", acts={"variant": _TRAINED}, ge=0, le=1
    )
    ce_weight: float = setting(2.0, "Of the answers' cross-entropy.", acts={"variant": _TRAINED}, ge=0)
    steps: int = setting(200, "Optimizer steps.", acts={"variant": _TRAINED}, ge=1)
    batch_size: int = setting(16, "Rows per pass.", acts={"variant": _TRAINED}, ge=1)
    accumulate: int = setting(1, "Passes per optimizer step.", acts={"variant": _TRAINED}, ge=1)
    budget: float | None = setting(
        None,
        "Most passes over the pictures, forward and backward; fewer steps are taken then.",
        acts={"variant": _TRAINED},
        gt=0,
        shown="none",
    )
    lr: float | None = setting(None, "Peak learning rate.", acts={"variant": _TRAINED}, shown="the variant's own", gt=0)
    rank: int = setting(4, "Of low-rank changes.", acts={"variant": ("low-rank", "lora")}, ge=1)
    ridge: float | None = setting(
        None, "λ of the closed form.", acts={"variant": "closed-form"}, shown="by cross-validation", ge=0
    )
    seed: int = seed_setting("Of rows and initial values.", acts={"variant": _TRAINED})

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if max(self.guide_weight, self.request_weight, self.opening_weight, self.ce_weight) == 0:
            raise UsageError("All weights of the loss are 0.", "Give at least one that is more.")
        return self

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return _RATES[self.variant] if self.lr is None else self.lr

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """The aligned layers of a decoder with ``n_layers`` blocks.

        Raises:
            UsageError: one of them does not exist.
        """
        if self.layers is None:
            return tuple(range(n_layers // 4, n_layers))
        for layer in self.layers:
            Site.block(layer).require_within(n_layers)
        return tuple(sorted(set(self.layers)))

    def fit(self, source: SupportsAligning) -> Adapter:
        """Align the model of ``source``.

        Raises:
            UsageError: a layer does not exist, or the model has nothing to train.
        """
        adapter: Adapter = load("safetykit.adapters.tga.tga:fit")(self, source)
        return adapter


@dataclass(frozen=True)
class Aligned:
    """Results of aligning a model.

    Attributes:
        updates: new weights.
        training: curve and circumstances; see ``toolkit.alignment.trainer``.
        alignment: per layer, how near pictures lie to their captions before and after; see
            ``toolkit.alignment.measure``.
    """

    updates: tuple[WeightUpdate, ...]
    training: Mapping[str, JsonValue]
    alignment: Mapping[str, JsonValue]


class SupportsAligning(Protocol):
    """A model with captioned pictures (``toolkit.alignment.Aligner``)."""

    @property
    def base(self) -> BaseInfo: ...

    @property
    def data(self) -> DataInfo: ...

    def align(self, settings: TGA) -> Aligned: ...
