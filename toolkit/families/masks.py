"""Decoders whose mask is built outside of them, from groups of tokens that see each other in both directions.

A token sees the past and its own group. In layers with a window the past is the last ``sliding_window`` tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .family import Family, GraphInput
from .windows import FULL, masks_of

if TYPE_CHECKING:
    from torch import Tensor


class GroupedFamily(Family):
    """SigLIP, a projector, and a decoder whose groups come as ``token_type_ids``."""

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        tower = model.model.vision_tower
        vision = tower(pixel_values=pixel_values.to(tower.dtype)).last_hidden_state
        return model.model.multi_modal_projector(vision), vision

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        return (*super().decoder_inputs(config), GraphInput("token_type_ids", "int64", ("batch", "sequence")))


def decoded(
    model: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    cache: Any,
    position_ids: Tensor,
    groups: Tensor,
    *,
    window_bounds_groups: bool,
) -> Tensor:
    """What the LM head reads.

    Args:
        groups, window_bounds_groups: see :func:`masks_of`.
    """
    decoder = model.get_decoder()
    text = decoder.config
    masks = masks_of(text, attention_mask, inputs_embeds, groups, window_bounds_groups=window_bounds_groups)
    by_layer = getattr(text, "layer_types", None) is not None
    return decoder(
        inputs_embeds=inputs_embeds,
        attention_mask=masks if by_layer else masks[FULL],
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
