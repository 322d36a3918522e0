"""Masks of decoders some or all of whose layers see a window of the past: its last ``sliding_window`` tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...adapters.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


def require_known_layers(text: Any) -> None:
    """Refuse kinds of layers that there is no mask for.

    Raises:
        UsageError: naming them.
    """
    if other := set(getattr(text, "layer_types", None) or ()) - {FULL, SLIDING}:
        raise UsageError(
            f"The decoder ({text.model_type}) has layers of kind {', '.join(sorted(other))}.",
            "Only layers that see the whole past or a window of it are exported.",
        )


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
        masks = {FULL: past & real} | ({} if near is None else {SLIDING: past & near & real})
    else:
        before = torch.full_like(attention_mask[:, : total - length], -1)
        of_keys = torch.cat([before, groups], dim=1)
        together = (groups[:, :, None] == of_keys[:, None, :]) & (groups[:, :, None] >= 0)
        masks = {FULL: (past | together) & real}
        if near is not None:
            seen = (past | together) & near if window_bounds_groups else (past & near) | together
            masks[SLIDING] = seen & real
    masks = {kind: mask[:, None] for kind, mask in masks.items()}
    if text._attn_implementation == "eager":  # which adds the mask to the scores
        low = torch.finfo(inputs_embeds.dtype).min
        none = torch.zeros((), dtype=inputs_embeds.dtype, device=inputs_embeds.device)
        masks = {kind: none.masked_fill(~mask, low) for kind, mask in masks.items()}
    return masks


def sees_windows(text: Any) -> bool:
    """Whether some layers of a decoder see a window of the past: those of a kind, or all where kinds are not named."""
    kinds = getattr(text, "layer_types", None)
    return SLIDING in kinds if kinds else bool(getattr(text, "sliding_window", None))


def window_mask(text: Any, attention_mask: Tensor, inputs_embeds: Tensor) -> Any:
    """What a decoder takes as its mask: ``attention_mask`` [batch, total] itself where every layer sees the whole past;
    otherwise masks by kind of layer, or the one of all layers. The cache is to keep the whole past in every layer."""
    if not sees_windows(text):
        return attention_mask
    masks = masks_of(text, attention_mask, inputs_embeds, None, window_bounds_groups=False)
    return masks if getattr(text, "layer_types", None) else masks[SLIDING]
