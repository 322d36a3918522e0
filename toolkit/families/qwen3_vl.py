"""Qwen3-VL: ``Qwen3VLForConditionalGeneration``.

Parts and weight prefixes:
    ``model.visual``                        ViT for pictures of any size; a table of positions is interpolated
    ``model.visual.merger``                 the projector
    ``model.visual.deepstack_merger_list``  further projectors, of states of earlier blocks of the tower
    ``model.language_model``                Qwen3 with interleaved rotary positions in time, height and width
    ``lm_head``

Features of the further projectors are added to the image tokens *between* the first decoder layers, after layers 0,
1, …. The site ``decoder.layers.N`` is the output of the layer, before that addition. They come as one input
``deepstack``, side by side, with zeros at tokens of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .family import Arrays, GraphInput
from .grids import table_mix
from .qwen2_vl import Qwen2VL, embedded
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Qwen3VL(Qwen2VL):
    """Qwen2-VL with interpolated positions and features that join later."""

    name, title = "qwen3_vl", "Qwen3-VL"
    of_patches = (
        *Qwen2VL.of_patches,
        GraphInput("table_rows", "int64", ("patches", 4)),
        GraphInput("table_weights", "float32", ("patches", 4)),
    )
    vision_outputs = ("image_features", "deepstack_features")
    scattered: ClassVar[dict[str, str]] = {"deepstack_features": "deepstack"}

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

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        width = config.text_config.hidden_size * len(config.vision_config.deepstack_visual_indexes)
        return (*super().decoder_inputs(config), GraphInput("deepstack", "weights", ("batch", "sequence", width)))

    def decoder(
        self,
        model: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any,
        position_ids: Tensor,
        deepstack: Tensor,
    ) -> Tensor:
        from transformers.masking_utils import create_causal_mask

        decoder, states = model.get_decoder(), inputs_embeds
        mask = create_causal_mask(
            config=decoder.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=None,
        )
        rotary = decoder.rotary_emb(states, position_ids)
        joining = deepstack.split(states.shape[-1], dim=-1)
        for at, layer in enumerate(decoder.layers):
            states = layer(states, position_embeddings=rotary, attention_mask=mask, past_key_values=cache)
            if at < len(joining):
                states = states + joining[at]
        return model.get_output_embeddings()(decoder.norm(states))

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        vision = config.vision_config
        side = int(vision.num_position_embeddings**0.5)
        rows, weights = table_mix(pictures["image_grid_thw"], vision.spatial_merge_size, side)
        return super().vision_feeds(config, pictures) | {"table_rows": rows, "table_weights": weights}
