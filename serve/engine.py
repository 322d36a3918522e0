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

OWN = "on"  # the variant of the export's own adapters


class ExportEngine:
    """Batches of an export.

    Args:
        model: the opened export; used by one thread from now on.
        swaps: what requests may choose in the place of its own adapters, by name.
    """

    def __init__(self, model: OnnxVLM, swaps: Mapping[str, Swap] | None = None) -> None:
        self.model, self._swaps = model, {OWN: model.swapped, **(swaps or {})}

    def use(self, variant: str) -> None:
        """Run with this variant's parameters."""
        self.model.install(self._swaps[variant])

    def begin(self, rows: Sequence[Answer]) -> Decoding:
        """Read the prompts together."""
        return self.model.prefill_requests([row.request for row in rows])

    def step(self, state: Decoding, tokens: Sequence[int]) -> Decoding:
        """Decode a token of each row."""
        return self.model.step(state, np.asarray(tokens))

    def join(self, parts: Sequence[Part]) -> Decoding:
        """See :meth:`OnnxVLM.join`."""
        return self.model.join(parts)
