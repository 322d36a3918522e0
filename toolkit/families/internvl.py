"""InternVL: ``InternVLForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            ViT with layer scale
    ``model.multi_modal_projector``   norm and two linear layers, after a pixel shuffle that merges 2 x 2 tokens
    ``model.language_model``          any causal decoder whose layers see the whole past or a window of it
    ``lm_head``

A picture may become several tiles; each tile is a row of pixels and gives a row of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .family import Family
from .llava import require_selection
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class InternVL(Family):
    """Tower, pixel shuffle, projector; the site ``vision`` lies after the shuffle."""

    name, title = "internvl", "InternVL"
    runs_in: ClassVar[Mapping[str, Any]] = {"genai": "gemma3"}

    def picture_text(self, processor: Any) -> tuple[str, str, str, str]:
        token = processor.image_token
        return token, processor.start_image_token, token, processor.end_image_token

    def check(self, config: Any) -> None:
        super().check(config)
        require_selection(config)

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        config, inner = model.config, model.model
        pixels = pixel_values.to(next(inner.vision_tower.parameters()).dtype)
        layer = config.vision_feature_layer
        found = inner.vision_tower(pixel_values=pixels, output_hidden_states=layer != -1)
        states = found.last_hidden_state if layer == -1 else found.hidden_states[layer]
        if config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        side = int(states.shape[1] ** 0.5)
        grid = states.reshape(states.shape[0], side, side, states.shape[2])
        vision = inner.pixel_shuffle(grid, scale_factor=config.downsample_ratio).flatten(1, 2)
        return inner.multi_modal_projector(vision), vision
