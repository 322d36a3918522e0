"""What may be chosen about HiddenDetect; :mod:`.detect` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from ..budget import Budget
from ..layers import Layer
from ..method import load
from ..settings import Settings, setting

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, HeadSource, Refusal

_CODE = "safetykit.adapters.hidden_detect.detect"


class HiddenDetect(Settings):
    """HiddenDetect; see :mod:`safetykit.adapters.hidden_detect.detect` for the mathematics."""

    layer: Layer | None = setting(None, "Decoder block that is read, from 0.", shown="the last one")
    false_positive_rate: float = setting(0.02, "Share of harmless calibration records that may be refused.", ge=0, lt=1)

    def fit(
        self,
        model: HeadSource,
        records: Iterable[Example],
        refusal: Refusal,
        *,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
        budget: Budget | None = None,
    ) -> Adapter:
        """Set the threshold on the ``calibration`` split; nothing else is learnt.

        Args:
            model: as it will run: with the correctors applied that the detector will be stacked with.
            refusal: what is answered instead; its first token is what states are compared with.
            corrected_by: which correctors these are, for the manifest.
            budget: what the threshold keeps on new groups, in the place of ``false_positive_rate``.

        Raises:
            UsageError: a label is missing, the layer does not exist, or the final norm is none that only scales.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, refusal, corrected_by=corrected_by, budget=budget)
        return adapter
