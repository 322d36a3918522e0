"""Qwen3.5: ``Qwen3_5ForConditionalGeneration``, ``Qwen3_5MoeForConditionalGeneration``.

Parts and weight prefixes:
    ``model.visual``            Qwen3-VL's tower; no features join later
    ``model.visual.merger``     the projector
    ``model.language_model``    three of four layers keep a state (gated delta rule), the others attend
    ``lm_head``

Rotary positions in time, height and width are of the layers that attend.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...adapters.errors import UsageError
from .family import Arrays, GraphInput
from .grids import table_mix
from .packed import Packed
from .registry import register


@register
class Qwen35(Packed):
    """Layers with states."""

    name, title = "qwen3_5", "Qwen3.5"
    of_patches = (
        *Packed.of_patches,
        GraphInput("interp_indices", "int64", ("patches", 4)),
        GraphInput("interp_weights", "float32", ("patches", 4)),
    )

    def check(self, config: Any) -> None:
        text = config.get_text_config()
        if other := set(text.layer_types) - {"linear_attention", "full_attention"}:
            raise UsageError(
                f"The decoder ({text.model_type}) has layers of kind {', '.join(sorted(other))}.",
                "Only layers that attend to the whole past or keep a state of it are exported.",
            )

    def of_grids(self, config: Any, grids: np.ndarray) -> Arrays:
        vision = config.vision_config
        rows, weights = table_mix(grids, vision.spatial_merge_size, int(vision.num_position_embeddings**0.5))
        return super().of_grids(config, grids) | {"interp_indices": rows, "interp_weights": weights}


@register
class Qwen35Moe(Qwen35):
    """Experts in the decoder."""

    name, title = "qwen3_5_moe", "Qwen3.5 MoE"
