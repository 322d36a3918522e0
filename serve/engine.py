"""An export as the engine of a :class:`~.scheduler.Scheduler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..export.runtime.batches import Part
from ..export.runtime.decoding import Decoding
from ..export.runtime.hotswap import Swap, swap_in
from ..export.runtime.onnx_vlm import OnnxVLM
from ..export.runtime.strength import scaled

if TYPE_CHECKING:
    from .answer import Answer

OWN, OFF = "on", "off"  # the names of the export's own adapters, and of none


class Variant(NamedTuple):
    """What answers: an adapter by its name, and how strongly it acts, as a multiple of how it was fitted."""

    adapter: str = OWN
    strength: float = 1.0


class ExportEngine:
    """Batches of an export.

    Args:
        model: the opened export; used by one thread from now on.
        swaps: what requests may choose in the place of its own adapters, by name.
        plain: the model without adapters, if requests may choose that.
        scales: whether requests may choose a strength.

    Attributes:
        adapters: names of what there is to choose from.

    Raises:
        SafetykitError: what would be scaled cannot be read.
    """

    def __init__(
        self,
        model: OnnxVLM,
        swaps: Mapping[str, Swap] | None = None,
        plain: OnnxVLM | None = None,
        *,
        scales: bool = False,
    ) -> None:
        self._own, self._plain, self._swaps = model, plain, {OWN: model.swapped, **(swaps or {})}
        self._model = model
        self.adapters = (OWN, *((OFF,) if plain is not None else ()), *(swaps or {}))
        self._fitted = model.swapped
        if scales and self._fitted is None:
            self._fitted = swap_in(model.path, model.manifest, model.manifest)

    def of(self, adapter: str) -> OnnxVLM:
        """What answers with the adapter of this name."""
        return self._plain if adapter == OFF and self._plain is not None else self._own

    def use(self, variant: Variant) -> None:
        """Run this variant's graphs with its parameters."""
        self._model = self.of(variant.adapter)
        if self._model is self._own:
            self._own.install(self._swap(variant))

    def _swap(self, variant: Variant) -> Swap | None:
        swap = self._swaps[variant.adapter]
        if variant.strength == 1:
            return swap
        fitted = self._fitted if variant.adapter == OWN else swap
        assert fitted is not None
        return scaled(fitted, self._own.manifest, variant.strength)

    def begin(self, rows: Sequence[Answer]) -> Decoding:
        """Read the prompts together."""
        return self._model.prefill_requests([row.request for row in rows])

    def step(self, state: Decoding, tokens: Sequence[int | None]) -> Decoding:
        """Decode a token of each row; padding where there is none."""
        padding = self._model.inputs.pad_token_id
        ids = np.array([padding if token is None else token for token in tokens])
        return self._model.step(state, ids, live=np.array([token is not None for token in tokens]))

    def join(self, parts: Sequence[Part]) -> Decoding:
        """See :meth:`OnnxVLM.join`."""
        return self._model.join(parts)
