"""LightOnOCR: ``LightOnOcrForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_encoder``       Pixtral: pictures of any size, patches row by row, rotary positions
    ``model.vision_projection``    norm, one product over 2 x 2 patches, two linear layers
    ``model.language_model``       Qwen3
    ``lm_head``

The processor pads the pictures of a batch to one size; the graph is fed the patches of each picture in a row, the order
in which they form blocks, and where each picture ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .family import Arrays, GraphInput
from .grids import block_order, patch_places
from .packed import Counted, Packed, bounds, packed_attention
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class LightOnOcr(Counted, Packed):
    """Pixtral's tower."""

    name, title = "lighton_ocr", "LightOnOCR"
    tower, projector = "model.vision_encoder", "model.vision_projection"
    of_patches = (*Packed.of_patches, GraphInput("block_order", "int64", ("patches",)))

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        numbers = config.vision_config.num_channels * config.vision_config.patch_size**2
        return (GraphInput("pixel_values", "float32", ("patches", numbers)), *self.of_patches)

    def vision_example(self, config: Any) -> Arrays:
        side = config.vision_config.patch_size * config.spatial_merge_size
        sizes = np.array([[2 * side, 3 * side], [side, side]])
        pixels = np.zeros((2, config.vision_config.num_channels, 2 * side, 3 * side), np.float32)
        return self.vision_feeds(config, {"pixel_values": pixels, "image_sizes": sizes})

    def vision(self, model: Any, pixel_values: Tensor, **of_patches: Tensor) -> tuple[Tensor, ...]:
        from torch.nn.functional import linear

        tower, projector = model.get_submodule(self.tower), model.get_submodule(self.projector)
        lengths, places = of_patches["cu_seqlens"], of_patches["position_ids"]
        kernel = tower.patch_conv.weight.flatten(1)
        patches = tower.ln_pre(linear(pixel_values.to(kernel.dtype), kernel)[None])
        turned = tower.patch_positional_embedding(patches, places)
        with packed_attention(tower):
            states = tower.transformer(
                patches, attention_mask=None, position_embeddings=turned, cu_seq_lens_q=lengths, return_dict=True
            ).last_hidden_state
        merge = model.config.spatial_merge_size
        blocks = projector.norm(states[0])[of_patches["block_order"]].reshape(-1, merge**2, states.shape[-1])
        merged = projector.patch_merger.merging_layer(blocks.transpose(1, 2).flatten(1))
        return projector.linear_2(projector.act(projector.linear_1(merged)))[None], states

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        side = config.vision_config.patch_size
        rows, found = pictures["image_sizes"] // side, []
        for pixels, (height, width) in zip(pictures["pixel_values"], rows.tolist(), strict=True):
            cut = pixels[:, : height * side, : width * side].reshape(-1, height, side, width, side)
            found.append(cut.transpose(1, 3, 0, 2, 4).reshape(height * width, -1))
        grids = np.column_stack([np.ones(len(rows), np.int64), rows])
        return {
            "pixel_values": np.concatenate(found),
            "position_ids": patch_places(grids, 1),
            "cu_seqlens": bounds(np.repeat(np.arange(len(grids)), grids.prod(axis=1))),
            "block_order": block_order(grids, config.spatial_merge_size),
        }

    def vision_calls(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
        for pixels, size in zip(pictures["pixel_values"], pictures["image_sizes"], strict=True):
            yield self.vision_feeds(config, {"pixel_values": pixels[None], "image_sizes": size[None]})
