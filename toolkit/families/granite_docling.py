"""Granite Docling: ``GraniteDoclingForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_model``              SigLIP; tiles of one size
    ``model.vision_model.connector``    pixel shuffle and linear layers, for several states of the tower
    ``model.text_model``                Granite, which multiplies embeddings, branches and logits by constants
    ``lm_head``

The processor marks the tiles that only fill a row up; they are left out, as the model leaves them out. Pages take the
coarse path of the connector, as the processor asks for by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .deepstack import DeepStacked
from .family import Arrays
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class GraniteDocling(DeepStacked):
    """Tiles, and features that join later."""

    name, title = "granite_docling", "Granite Docling"
    projector, taps = None, ()  # the connector gives several things at once

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        return [list(row) for row in pictures] if any(pictures) else None

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        import torch

        tower = model.model.vision_model
        found = tower(pixel_values=pixel_values.to(tower.dtype), return_dict=True)
        return found.pooler_output, torch.cat(found.deepstack_features, dim=-1)

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        return {"pixel_values": pictures["pixel_values"][pictures["pixel_attention_mask"].astype(bool)]}
