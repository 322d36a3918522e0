"""Qwen3-VL and relatives: ``Qwen3VLForConditionalGeneration``, ``Qwen3VLMoeForConditionalGeneration``, …

Parts and weight prefixes:
    ``model.visual``                        ViT for pictures of any size; a table of positions is interpolated
    ``model.visual.merger``                 the projector
    ``model.visual.deepstack_merger_list``  further projectors, of states of earlier blocks of the tower
    ``model.language_model``                Qwen3 with interleaved rotary positions in time, height and width
    ``lm_head``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .deepstack import DeepStacked
from .family import Arrays, GraphInput
from .grids import table_mix
from .qwen2_vl import Qwen2VL, embedded
from .registry import register
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor


@register
class Qwen3VL(DeepStacked, Qwen2VL):
    """Qwen2-VL with interpolated positions and features that join later."""

    name, title = "qwen3_vl", "Qwen3-VL"
    of_patches = (
        *Qwen2VL.of_patches,
        GraphInput("table_rows", "int64", ("patches", 4)),
        GraphInput("table_weights", "float32", ("patches", 4)),
    )

    def vision(
        self, model: Any, pixel_values: Tensor, table_rows: Tensor, table_weights: Tensor, **of_patches: Tensor
    ) -> tuple[Tensor, ...]:
        import torch

        tower = model.model.visual
        patches = embedded(tower, pixel_values)
        positions = (tower.pos_embed(table_rows) * table_weights[:, :, None]).sum(1)
        states = list(self.states(tower, patches + positions.to(patches.dtype), of_patches))
        mergers = zip(tower.deepstack_visual_indexes, tower.deepstack_merger_list, strict=True)
        vision = states[-1][None]
        features = torch.cat([merger(states[block]) for block, merger in mergers], dim=-1)
        return tower.merger(vision)[None], features[None], vision

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        vision = config.vision_config
        side = int(vision.num_position_embeddings**0.5)
        rows, weights = table_mix(pictures["image_grid_thw"], vision.spatial_merge_size, side)
        return super().vision_feeds(config, pictures) | {"table_rows": rows, "table_weights": weights}


@register
class Qwen3VLMoe(Qwen3VL):
    """Experts in the decoder."""

    name, title = "qwen3_vl_moe", "Qwen3-VL MoE"


@register
class Cosmos3Omni(Qwen3VL):
    """Qwen3-VL's classes."""

    name, title = "cosmos3_omni", "Cosmos 3 Omni"


@register
class CohereCompass(Qwen3VL):
    """A decoder of Cohere's, whose layers see windows."""

    name, title = "cohere_compass", "Cohere Compass"

    def check(self, config: Any) -> None:
        require_known_layers(config.get_text_config())
