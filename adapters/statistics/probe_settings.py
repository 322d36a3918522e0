"""What the detectors share: a linear probe fitted on one split, its threshold set on another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from ..artifact.sites import Site
from ..budget import Budget
from ..errors import UsageError
from ..method import load
from ..protocols import Blocks, BranchSource, Example, Place, Refusal
from ..ranges import seed_setting
from ..settings import Settings, setting
from .choices import Space

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter

_CODE = "safetykit.adapters.statistics.probe_fit"


class ProbeSettings(Settings):
    """What SASA and the one-pass probe share."""

    method: ClassVar[str]

    false_positive_rate: float = setting(0.02, "Share of harmless calibration records that may be refused.", ge=0, lt=1)
    space: Space = setting("hidden", "What the probe's penalty is measured on: hidden states or logits.")
    fraction: float = setting(
        1.0, "Share of the fit records to use, drawn within carrier and label, such as 0.05.", gt=0, le=1
    )
    seed: int = seed_setting("Of that draw and of the cross-validation's folds.")

    @property
    def kind(self) -> str:
        """The variant, as the manifest has it."""
        raise NotImplementedError

    def places(self, depth: int) -> list[Place]:
        """What the detector may read in a decoder of ``depth`` blocks; more than one are a choice.

        Raises:
            UsageError: a given layer does not exist.
        """
        raise NotImplementedError

    def chosen(self, place: Place) -> dict[str, JsonValue]:
        """The chosen layers, for the manifest."""
        raise NotImplementedError

    def compared(self, places: Sequence[Place]) -> list[Place]:
        """What detectors at these places are compared with: the fused layers' own states, and the last ones."""
        blocks = {layer for place in places for layer in _read_by(place)}
        return [
            *(Site.block(layer) for layer in sorted(blocks)),
            Site("final_norm"),
        ]

    def fit(
        self,
        model: BranchSource,
        records: Iterable[Example],
        refusal: Refusal,
        *,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
        budget: Budget | None = None,
    ) -> Adapter:
        """Fit the probe on the ``fit`` split and set its threshold on the ``calibration`` split.

        Args:
            model: as it will run: with the correctors applied that the detector will be stacked with.
            refusal: what is answered instead.
            corrected_by: which correctors these are, for the manifest.
            budget: what the threshold keeps on new groups, in the place of ``false_positive_rate``.

        Raises:
            UsageError: a split or a label is missing, a layer does not exist, or groups are too few for the budget.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, refusal, corrected_by=corrected_by, budget=budget)
        return adapter


def _read_by(place: Place) -> tuple[int, ...]:
    """Blocks whose own states are compared with a detector."""
    if isinstance(place, Blocks):
        return place.layers
    layer = place[1] if isinstance(place, tuple) else place.layer
    return () if layer is None else (layer,)


def require_labels(records: Sequence[Example]) -> None:
    """Refuse records on which no detector can be fitted.

    Raises:
        UsageError: naming the split and the label that is missing.
    """
    for split, labels in (("fit", ("harmful", "harmless")), ("calibration", ("harmless", "harmful"))):
        for label in labels:
            if not any(record.split == split and record.label == label for record in records):
                use = (
                    "The probe is fitted on both labels."
                    if split == "fit"
                    else ("The threshold is set on harmless records, and harmful ones show what it catches.")
                )
                raise UsageError(f"The {split} split holds no {label} record.", use)
