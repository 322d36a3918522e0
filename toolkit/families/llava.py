"""LLaVA-1.5: ``LlavaForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            CLIP- or SigLIP-like tower
    ``model.multi_modal_projector``   two linear layers
    ``model.language_model``          any causal decoder whose layers see the whole past or a window of it
    ``lm_head``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ...adapters.errors import UsageError
from .family import Family
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Llava(Family):
    """Tower, feature selection, projector."""

    name, title = "llava", "LLaVA-1.5"
    # GenAI's type for it; what the tower is fed
    runs_in: ClassVar[Mapping[str, Any]] = {"genai": "gemma3", "transformers.js": ("pixel_values",)}

    def check(self, config: Any) -> None:
        super().check(config)
        require_selection(config)

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        vision = selected_states(model, pixel_values)
        return model.model.multi_modal_projector(vision), vision


def require_selection(config: Any) -> None:
    """Refuse ways of choosing features that are not known.

    Raises:
        UsageError: naming it.
    """
    if config.model_type == "llava" and config.vision_config.model_type == "pixtral":
        raise UsageError(
            "The vision tower (pixtral) takes pictures of any size.", "Only towers of one size are exported for LLaVA."
        )
    strategy = config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise UsageError(
            f"vision_feature_select_strategy is {strategy!r}.",
            "Only 'default' and 'full' are known; check config.json.",
        )


def selected_states(model: Any, pixel_values: Tensor) -> Tensor:
    """States of the tower's chosen layers [n, tokens, d_vision·layers], as the projector reads them.

    Tower and projector are called one after the other, because the model's own ``get_image_features`` turns its result
    into a list, which cannot be traced.
    """
    import torch

    config = model.config
    tower = model.model.vision_tower
    pixels = pixel_values.to(next(tower.parameters()).dtype)
    states = tower(pixels, output_hidden_states=True).hidden_states
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    first = 1 if config.vision_feature_select_strategy == "default" else 0
    kept = [states[layer][:, first:] for layer in layers]
    return kept[0] if len(kept) == 1 else torch.cat(kept, dim=-1)
