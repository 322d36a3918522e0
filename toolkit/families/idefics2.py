"""Idefics2: ``Idefics2ForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_model``   SigLIP-like tower for pictures of any size
    ``model.connector``      one MLP, then a resampler that makes as many features of each picture
    ``model.text_model``     Mistral
    ``lm_head``

Pictures smaller than the batch's largest are padded, and a mask of patches says where. Their size varies, so the graph
is fed patches [images, patches, numbers] instead of pixels, with the position of each, as Idefics3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .family import Arrays, GraphInput
from .generic import logits_of
from .idefics import Idefics3, patch_positions
from .registry import register
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor


@register
class Idefics2(Idefics3):
    """Patches of pictures of any size, resampled."""

    name, title = "idefics2", "Idefics2"

    def check(self, config: Any) -> None:
        require_known_layers(config.get_text_config())

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        numbers = 3 * config.vision_config.patch_size**2
        return (
            GraphInput("pixel_values", "float32", ("images", "patches", numbers)),
            GraphInput("patch_position_ids", "int64", ("images", "patches")),
            GraphInput("patch_mask", "bool", ("images", "patches")),
        )

    def vision_example(self, config: Any) -> Arrays:
        side = config.vision_config.patch_size
        pixels = np.ones((1, 2, 3, side, 3 * side), np.float32)
        mask = np.ones((1, 2, side, 3 * side), dtype=bool)
        return self.vision_feeds(config, {"pixel_values": pixels, "pixel_attention_mask": mask})

    def vision(
        self, model: Any, pixel_values: Tensor, patch_position_ids: Tensor, patch_mask: Tensor
    ) -> tuple[Tensor, ...]:
        import torch
        from torch.nn.functional import linear

        tower = model.model.vision_model
        convolution = tower.embeddings.patch_embedding
        patches = linear(pixel_values.to(convolution.weight.dtype), convolution.weight.flatten(1), convolution.bias)
        hidden = patches + tower.embeddings.position_embedding(patch_position_ids)
        allowed = (patch_mask[:, None, :] & torch.ones_like(patch_mask)[:, :, None])[:, None]
        bias = torch.zeros((), dtype=hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)
        vision = tower.post_layernorm(tower.encoder(inputs_embeds=hidden, attention_mask=bias).last_hidden_state)
        return model.model.connector(vision, attention_mask=patch_mask), vision

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        patch, side = (
            config.vision_config.patch_size,
            config.vision_config.image_size // config.vision_config.patch_size,
        )
        pixels = pictures["pixel_values"].reshape(-1, *pictures["pixel_values"].shape[2:])
        masks = pictures["pixel_attention_mask"].reshape(-1, *pictures["pixel_attention_mask"].shape[2:]).astype(bool)
        real = (pixels != 0).any(axis=(1, 2, 3))
        rows, columns = (size // patch for size in pixels.shape[2:])  # a rest is not read
        pixels = pixels[real][:, :, : rows * patch, : columns * patch]
        covered = masks[real][:, : rows * patch, : columns * patch].reshape(-1, rows, patch, columns, patch)
        covered = covered.all(axis=(2, 4))
        cut = pixels.reshape(len(pixels), 3, rows, patch, columns, patch).transpose(0, 2, 4, 1, 3, 5)
        return {
            "pixel_values": cut.reshape(len(pixels), rows * columns, -1),
            "patch_position_ids": patch_positions(covered, side),
            "patch_mask": covered.reshape(len(covered), -1),
        }

    def decoder(
        self, model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any, **inputs: Tensor
    ) -> Tensor:
        return logits_of(model, inputs_embeds, attention_mask, cache, **inputs)
