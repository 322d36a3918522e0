"""Idefics3 and SmolVLM: ``Idefics3ForConditionalGeneration``, ``SmolVLMForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_model``   SigLIP-like tower that takes pictures smaller than its tiles, by a mask of patches
    ``model.connector``      pixel shuffle and one linear layer
    ``model.text_model``     a Llama-like decoder
    ``lm_head``

A picture becomes tiles of one size. Rows with fewer tiles than the batch's most are filled with blank ones, left out
here as the model leaves them out. The model computes the position of each patch from the mask; here positions and mask
are inputs of the graph, computed beforehand: the model's code for them depends on the data and cannot be traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.errors import UsageError
from .family import Arrays, Family, GraphInput
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Idefics3(Family):
    """Tiles, and for each patch whether it is a picture's and where it lies."""

    name, title = "idefics3", "Idefics3"

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        return [list(row) for row in pictures] if any(pictures) else None

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        size, patches = _size(config), _side(config) ** 2
        return (
            GraphInput("pixel_values", "float32", ("tiles", 3, size, size)),
            GraphInput("patch_position_ids", "int64", ("tiles", patches)),
            GraphInput("patch_mask", "bool", ("tiles", patches)),
        )

    def vision_example(self, config: Any) -> Arrays:
        size = _size(config)
        mask = np.ones((1, 2, size, size), dtype=bool)
        return self.vision_feeds(
            config, {"pixel_values": np.ones((1, 2, 3, size, size), np.float32), "pixel_attention_mask": mask}
        )

    def vision(
        self, model: Any, pixel_values: Tensor, patch_position_ids: Tensor, patch_mask: Tensor
    ) -> tuple[Tensor, ...]:
        import torch

        tower = model.model.vision_model
        patches = tower.embeddings.patch_embedding(pixel_values.to(tower.embeddings.patch_embedding.weight.dtype))
        hidden = patches.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(patch_position_ids)
        allowed = patch_mask[:, None, None, :].expand(-1, 1, patch_mask.shape[1], -1)
        bias = torch.zeros((), dtype=hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)
        states = tower.encoder(inputs_embeds=hidden, attention_mask=bias).last_hidden_state
        vision = tower.post_layernorm(states)
        return model.model.connector(vision), vision

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        pixels = pictures["pixel_values"].reshape(-1, *pictures["pixel_values"].shape[2:])
        masks = pictures["pixel_attention_mask"].reshape(-1, *pictures["pixel_attention_mask"].shape[2:]).astype(bool)
        if pixels.shape[2:] != (_size(config), _size(config)):
            raise UsageError(
                f"The processor makes tiles of {pixels.shape[3]} by {pixels.shape[2]} pixels, the tower reads "
                f"{_size(config)} by {_size(config)}.",
                "Set do_image_splitting and max_image_size in preprocessor_config.json to the tower's tiles.",
            )
        real = (pixels != 0).any(axis=(1, 2, 3))
        side, patch = _side(config), config.vision_config.patch_size
        patches = masks[real].reshape(-1, side, patch, side, patch).any(axis=(2, 4))
        return {
            "pixel_values": pixels[real],
            "patch_position_ids": patch_positions(patches, side),
            "patch_mask": patches.reshape(len(patches), -1),
        }


@register
class SmolVLM(Idefics3):
    """Idefics3's architecture in a smaller model."""

    name, title = "smolvlm", "SmolVLM"


def patch_positions(patches: np.ndarray, side: int) -> np.ndarray:
    """Where each patch lies in the tower's grid of ``side`` by ``side`` positions, if the picture filled the tile.

    Args:
        patches: [tiles, rows, columns], True at patches of the picture, which lies in the upper left.

    Returns:
        [tiles, rows · columns] int64; 0 outside the picture.
    """
    # In single precision, as the model: coordinates on the border of two positions fall to the same one.
    borders = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)

    def along(count: np.ndarray, length: int) -> np.ndarray:
        step = np.float32(1.0) / count.astype(np.float32)
        places = np.minimum(np.arange(length, dtype=np.float32) * step[:, None], np.float32(1.0 - 1e-6))
        return np.searchsorted(borders, places, side="right")

    rows = along(patches[:, :, 0].sum(axis=1), patches.shape[1])
    columns = along(patches[:, 0, :].sum(axis=1), patches.shape[2])
    positions = rows[:, :, None] * side + columns[:, None, :]
    return np.where(patches, positions, 0).reshape(len(patches), -1).astype(np.int64)


def _size(config: Any) -> int:
    return int(config.vision_config.image_size)


def _side(config: Any) -> int:
    return _size(config) // int(config.vision_config.patch_size)
