"""An export as the engine of a :class:`~.scheduler.Scheduler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..export.runtime.batches import Part
from ..export.runtime.decoding import Decoding
from ..export.runtime.hotswap import Swap
from ..export.runtime.onnx_vlm import OnnxVLM

if TYPE_CHECKING:
    from .answer import Answer

OWN, OFF = "on", "off"  # the variants of the export's own adapters, and of none


class ExportEngine:
    """Batches of an export.

    Args:
        model: the opened export; used by one thread from now on.
        swaps: what requests may choose in the place of its own adapters, by name.
        plain: the model without adapters, if requests may choose that.

    Attributes:
        variants: what there is to choose from.
    """

    def __init__(self, model: OnnxVLM, swaps: Mapping[str, Swap] | None = None, plain: OnnxVLM | None = None) -> None:
        self._own, self._plain, self._swaps = model, plain, {OWN: model.swapped, **(swaps or {})}
        self._model = model
        self.variants = (OWN, *((OFF,) if plain is not None else ()), *(swaps or {}))

    def of(self, variant: str) -> OnnxVLM:
        """What answers as this variant."""
        return self._plain if variant == OFF and self._plain is not None else self._own

    def use(self, variant: str) -> None:
        """Run this variant's graphs with its parameters."""
        self._model = self.of(variant)
        if self._model is self._own:
            self._own.install(self._swaps[variant])

    def begin(self, rows: Sequence[Answer]) -> Decoding:
        """Read the prompts together."""
        return self._model.prefill_requests([row.request for row in rows])

    def step(self, state: Decoding, tokens: Sequence[int]) -> Decoding:
        """Decode a token of each row."""
        return self._model.step(state, np.asarray(tokens))

    def join(self, parts: Sequence[Part]) -> Decoding:
        """See :meth:`OnnxVLM.join`."""
        return self._model.join(parts)
