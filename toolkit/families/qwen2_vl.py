"""Qwen2-VL: ``Qwen2VLForConditionalGeneration``.

Parts and weight prefixes:
    ``model.visual``            ViT for pictures of any size, with rotary positions; its patches are not padded
    ``model.visual.merger``     norm and two linear layers over 2 x 2 patches; the projector
    ``model.language_model``    Qwen2 with rotary positions in time, height and width
    ``lm_head``

The model computes places of patches and lengths of pictures from the grids, in loops that depend on the data and
cannot be traced; here they are inputs of the graph, computed beforehand. Patches of all pictures come in one row, and
which see each other is a dense mask over them: right for any grid, with memory that grows with the square of their
number. Our runtime feeds one picture at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .family import Arrays, Family, GraphInput
from .grids import frame_ids, patch_places, rotary_positions
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..model.requests import Inputs


@register
class Qwen2VL(Family):
    """Packed patches that see their own frame; three positions a token."""

    name, title = "qwen2_vl", "Qwen2-VL"
    projector: ClassVar[str | None] = "model.visual.merger"
    of_patches: ClassVar[tuple[GraphInput, ...]] = (
        GraphInput("patch_places", "int64", ("patches", 2)),
        GraphInput("frame_ids", "int64", ("patches",)),
    )

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        vision = config.vision_config
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return (GraphInput("pixel_values", "float32", ("patches", numbers)), *self.of_patches)

    def vision_example(self, config: Any) -> Arrays:
        side = config.vision_config.spatial_merge_size
        grids = np.array([[1, 2 * side, 3 * side], [1, side, side]])
        _, *numbers = self.vision_inputs(config)[0].shape
        pixels = np.zeros((int(grids.prod(axis=1).sum()), *map(int, numbers)), np.float32)
        return self.vision_feeds(config, {"pixel_values": pixels, "image_grid_thw": grids})

    def vision(self, model: Any, pixel_values: Tensor, **of_patches: Tensor) -> tuple[Tensor, ...]:
        tower = model.model.visual
        *_, states = self.states(tower, embedded(tower, pixel_values), of_patches)
        vision = states[None]
        return tower.merger(vision)[None], vision

    def states(self, tower: nn.Module, states: Tensor, of_patches: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """States [patches, d_vision] after each block of the tower."""
        rotary = tower.rotary_pos_emb(states, of_patches["patch_places"])
        for block, allowed in zip(tower.blocks, self.allowed(tower, of_patches), strict=True):
            states = states + attended(block.attn, block.norm1(states), rotary, allowed)
            states = states + block.mlp(block.norm2(states))
            yield states

    def allowed(self, tower: nn.Module, of_patches: Mapping[str, Tensor]) -> list[Tensor]:
        """For each block which patches [patches, patches] see which."""
        return [same(of_patches["frame_ids"])] * len(tower.blocks)

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        return (GraphInput("position_ids", "int64", (3, "batch", "sequence")),)

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        grids = pictures["image_grid_thw"]
        return {
            "pixel_values": pictures["pixel_values"],
            "patch_places": patch_places(grids, config.vision_config.spatial_merge_size),
            "frame_ids": frame_ids(grids),
        }

    def vision_calls(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
        """Picture by picture: those of a batch do not see each other, and a mask over all of them would be wasted."""
        grids = pictures["image_grid_thw"]
        parts = np.split(pictures["pixel_values"], np.cumsum(grids.prod(axis=1))[:-1])
        for pixels, grid in zip(parts, grids, strict=True):
            yield self.vision_feeds(config, {"pixel_values": pixels, "image_grid_thw": grid[None]})

    def prefill(self, config: Any, inputs: Inputs) -> Arrays:
        grids, merge = inputs.pictures.get("image_grid_thw"), config.vision_config.spatial_merge_size
        return {"position_ids": rotary_positions(inputs.vision_mask, inputs.attention_mask, grids, merge)}

    def step(self, config: Any, before: Mapping[str, np.ndarray], mask: np.ndarray) -> Arrays:
        following = before["position_ids"].max(axis=(0, 2)) + mask[:, -1]
        return {"position_ids": np.tile(following[:, None], (3, 1, 1))}


def embedded(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """Patches [patches, d_vision]. The tower's convolution moves by whole patches: one product with its weights."""
    from torch.nn.functional import linear

    convolution = tower.patch_embed.proj
    return linear(pixel_values.to(convolution.weight.dtype), convolution.weight.flatten(1), convolution.bias)


def same(ids: Tensor) -> Tensor:
    """Which of ``ids`` [n] are equal, [n, n]."""
    return ids[:, None] == ids[None, :]


def attended(attention: nn.Module, states: Tensor, rotary: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
    """The tower's attention over all patches at once; rotary angles and the turn in float32, as in the model."""
    from torch.nn.functional import scaled_dot_product_attention

    heads = attention.qkv(states).reshape(len(states), 3, attention.num_heads, -1)
    queries, keys, values = heads.permute(1, 2, 0, 3).unbind(0)
    cos, sin = (part.float() for part in rotary)
    queries, keys = (_turned(part.float(), cos, sin).to(values.dtype) for part in (queries, keys))
    mixed = scaled_dot_product_attention(
        queries[None], keys[None], values[None], attn_mask=allowed[None, None], scale=attention.scaling
    )
    return attention.proj(mixed[0].transpose(0, 1).flatten(1))


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    import torch

    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
