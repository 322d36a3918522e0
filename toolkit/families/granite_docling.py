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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .deepstack import OUTPUTS, SCATTERED, deepstack_input, joining
from .family import Arrays, Family, GraphInput
from .generic import logits_of
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class GraniteDocling(Family):
    """Tiles, and features that join later."""

    name, title = "granite_docling", "Granite Docling"
    projector, taps = None, ()  # the connector gives several things at once
    vision_outputs = OUTPUTS
    scattered: ClassVar[Mapping[str, str]] = SCATTERED

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        return [list(row) for row in pictures] if any(pictures) else None

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        import torch

        tower = model.model.vision_model
        found = tower(pixel_values=pixel_values.to(tower.dtype), return_dict=True)
        return found.pooler_output, torch.cat(found.deepstack_features, dim=-1)

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        return {"pixel_values": pictures["pixel_values"][pictures["pixel_attention_mask"].astype(bool)]}

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        return (*super().decoder_inputs(config), deepstack_input(config))

    def decoder(
        self,
        model: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any,
        *,
        deepstack: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        with joining(model.get_decoder(), deepstack):
            return logits_of(model, inputs_embeds, attention_mask, cache, **inputs)
