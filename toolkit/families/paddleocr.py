"""PaddleOCR-VL: ``PaddleOCRVLForConditionalGeneration``.

Parts and weight prefixes:
    ``model.visual``            SigLIP for pictures of any size, whose patches come row by row
    ``model.projector``         norm and two linear layers over 2 x 2 patches
    ``model.language_model``    ERNIE 4.5 with rotary positions in time, height and width
    ``lm_head``

The projector sorts the patches of each picture by block; here their order is an input of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .family import Arrays, GraphInput
from .grids import block_order, patch_places, table_mix
from .packed import Packed
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class PaddleOCR(Packed):
    """Patches row by row, an interpolated table of positions."""

    name, title = "paddleocr_vl", "PaddleOCR-VL"
    projector = "model.projector"
    of_patches = (
        *Packed.of_patches,
        GraphInput("interp_indices", "int64", ("patches", 4)),
        GraphInput("interp_weights", "float32", ("patches", 4)),
        GraphInput("block_order", "int64", ("patches",)),
    )

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        side = config.vision_config.patch_size
        return (GraphInput("pixel_values", "float32", ("patches", 3, side, side)), *self.of_patches)

    def features(self, model: Any, tower: Any, pixels: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        projector, order = model.get_submodule(self.projector), given.pop("block_order")
        states = tower(pixels[None], **given).last_hidden_state
        blocks = projector.pre_norm(states)[order].reshape(-1, projector.linear_1.in_features)
        return projector.linear_2(projector.act(projector.linear_1(blocks))), states

    def of_grids(self, config: Any, grids: np.ndarray) -> Arrays:
        vision = config.vision_config
        rows, weights = table_mix(grids, 1, vision.image_size // vision.patch_size, corners=False)
        return super().of_grids(config, grids) | {
            "position_ids": patch_places(grids, 1),
            "interp_indices": rows,
            "interp_weights": weights,
            "block_order": block_order(grids, vision.spatial_merge_size),
        }
