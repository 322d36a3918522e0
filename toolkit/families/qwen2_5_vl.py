"""Qwen2.5-VL: ``Qwen2_5_VLForConditionalGeneration``. Parts and weight prefixes are those of Qwen2-VL.

Most blocks of the tower see a window of the picture only. The model sorts the patches by window for that; here they
stay in their order, and the mask of those blocks is by window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .family import Arrays, GraphInput
from .grids import window_ids
from .qwen2_vl import Qwen2VL, same
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
class Qwen25VL(Qwen2VL):
    """Qwen2-VL with windows."""

    name, title = "qwen2_5_vl", "Qwen2.5-VL"
    of_patches = (*Qwen2VL.of_patches, GraphInput("window_ids", "int64", ("patches",)))

    def allowed(self, tower: nn.Module, of_patches: Mapping[str, Tensor]) -> list[Tensor]:
        whole, window = same(of_patches["frame_ids"]), same(of_patches["window_ids"])
        return [whole if at in tower.fullatt_block_indexes else window for at in range(len(tower.blocks))]

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        vision = config.vision_config
        merge, side = vision.spatial_merge_size, vision.window_size // vision.spatial_merge_size // vision.patch_size
        windows = window_ids(pictures["image_grid_thw"], merge, side)
        return super().vision_feeds(config, pictures) | {"window_ids": windows}
