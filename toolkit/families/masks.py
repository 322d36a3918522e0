"""Decoders whose mask is built outside of them, from groups of tokens that see each other in both directions.

A token sees the past and its own group. In layers with a window the past is the last ``sliding_window`` tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...adapters.errors import UsageError
from .family import Family, GraphInput

if TYPE_CHECKING:
    from torch import Tensor

_FULL, _SLIDING = "full_attention", "sliding_attention"


class GroupedFamily(Family):
    """SigLIP, a projector, and a decoder whose groups come as ``token_type_ids``."""

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        tower = model.model.vision_tower
        vision = tower(pixel_values=pixel_values.to(tower.dtype)).last_hidden_state
        return model.model.multi_modal_projector(vision), vision

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        return (*super().decoder_inputs(config), GraphInput("token_type_ids", "int64", ("batch", "sequence")))


def require_known_layers(text: Any) -> None:
    """Refuse kinds of layers that :func:`decoded` has no mask for.

    Raises:
        UsageError: naming them.
    """
    if other := set(getattr(text, "layer_types", None) or ()) - {_FULL, _SLIDING}:
        raise UsageError(
            f"The decoder ({text.model_type}) has layers of kind {', '.join(sorted(other))}.",
            "Only layers that see the whole past or a window of it are exported.",
        )


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
        attention_mask=masks if by_layer else masks[_FULL],
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def masks_of(
    text: Any, attention_mask: Tensor, inputs_embeds: Tensor, groups: Tensor | None, *, window_bounds_groups: bool
) -> dict[str, Tensor]:
    """Masks [batch, 1, sequence, total] by kind of layer.

    Args:
        text: the decoder's configuration.
        attention_mask: [batch, total], of which the last columns are this call's tokens.
        groups: [batch, sequence], a number for each group and −1 for tokens of none; members come in one call. None
            if there are no groups.
        window_bounds_groups: whether the lower end of a window holds within a group.
    """
    import torch

    total, length = attention_mask.shape[1], inputs_embeds.shape[1]
    keys = torch.arange(total, device=attention_mask.device)
    queries = torch.arange(length, device=attention_mask.device)[:, None] + (total - length)
    past, real = keys <= queries, attention_mask[:, None, :].bool()
    near = keys > queries - text.sliding_window if getattr(text, "sliding_window", None) is not None else None
    if groups is None:
        masks = {_FULL: past & real} | ({} if near is None else {_SLIDING: past & near & real})
    else:
        before = torch.full_like(attention_mask[:, : total - length], -1)
        of_keys = torch.cat([before, groups], dim=1)
        together = (groups[:, :, None] == of_keys[:, None, :]) & (groups[:, :, None] >= 0)
        masks = {_FULL: (past | together) & real}
        if near is not None:
            seen = (past | together) & near if window_bounds_groups else (past & near) | together
            masks[_SLIDING] = seen & real
    masks = {kind: mask[:, None] for kind, mask in masks.items()}
    if text._attn_implementation == "eager":  # which adds the mask to the scores
        low = torch.finfo(inputs_embeds.dtype).min
        none = torch.zeros((), dtype=inputs_embeds.dtype, device=inputs_embeds.device)
        masks = {kind: none.masked_fill(~mask, low) for kind, mask in masks.items()}
    return masks


def sees_windows(text: Any) -> bool:
    """Whether some layers of a decoder see a window of the past."""
    return _SLIDING in (getattr(text, "layer_types", None) or ())
