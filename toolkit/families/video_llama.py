"""VideoLLaMA 3: ``VideoLlama3ForConditionalGeneration``, for pictures.

Parts and weight prefixes:
    ``model.vision_model``      ViT for pictures of any size
    ``model.projector``         two linear layers
    ``model.language_model``    Qwen2
    ``lm_head``

The tower shrinks frames of videos; a picture stays as it is, so that each patch is a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from ...adapters.errors import UsageError
from .family import Arrays, GraphInput
from .grids import patch_places
from .packed import Counted, Packed, bounds
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class VideoLlama3(Counted, Packed):
    """A token for each patch."""

    name, title = "video_llama_3", "VideoLLaMA 3"
    tower, projector = "model.vision_model", "model.projector"

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        vision = config.vision_config
        numbers = vision.num_channels * vision.patch_size**2
        return (GraphInput("pixel_values", "float32", ("patches", numbers)), *self.of_patches)

    def vision_example(self, config: Any) -> Arrays:
        grids = np.array([[1, 2, 3], [1, 1, 2]])
        numbers = self.vision_inputs(config)[0].shape[1]
        pixels = np.zeros((int(grids.prod(axis=1).sum()), int(numbers)), np.float32)
        return self.vision_feeds(config, {"pixel_values": pixels, "image_grid_thw": grids})

    def features(self, model: Any, tower: Any, pixels: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with patch.object(tower, "pixel_unshuffle", lambda states, *_: states):
            states = tower(pixels, merge_sizes=None, **given).last_hidden_state
        return model.get_submodule(self.projector)(states), states

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        if (pictures.get("image_merge_sizes", np.array(1)) != 1).any():
            raise UsageError(
                "The processor shrinks pictures (merge_size is not 1).", "Set merge_size to 1 in its configuration."
            )
        return super().vision_feeds(config, pictures)

    def of_grids(self, config: Any, grids: np.ndarray) -> Arrays:
        frames = np.repeat(np.arange(len(grids)), grids.prod(axis=1))
        return {"position_ids": patch_places(grids, 1), "cu_seqlens": bounds(frames)}
