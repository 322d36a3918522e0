"""The LLaVA family: ``LlavaForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            CLIP- or SigLIP-like tower
    ``model.multi_modal_projector``   two linear layers
    ``model.language_model``          any full-attention causal decoder
    ``lm_head``
"""

from __future__ import annotations

import torch
from torch import nn

from ..adapters.errors import UsageError
from .causal import decoder_spec, embedding_spec
from .families import Family, GraphSpec, register
from .layout import Graph


class LlavaVision(nn.Module):
    """Tower, feature selection and projector.

    The tower and the projector are called one after the other, because the model's own
    ``get_image_features`` turns its result into a list, which cannot be traced.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, layers: int | list[int], strategy: str) -> None:
        super().__init__()
        self.tower, self.projector = tower, projector
        self.layers, self.strategy = layers, strategy

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image features [n, tokens, d_model] and what the projector read [n, tokens, d_vision·layers].

        ``pixel_values`` [n, 3, height, width] is float32 whatever the precision of the weights.
        """
        pixels = pixel_values.to(self.projector.linear_1.weight.dtype)
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        layers = [self.layers] if isinstance(self.layers, int) else self.layers
        chosen = [states[layer] if self.strategy == "full" else states[layer][:, 1:] for layer in layers]
        vision = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return self.projector(vision), vision


def _build(model: nn.Module) -> dict[Graph, GraphSpec]:
    config, inner = model.config, model.model
    strategy = config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise UsageError(
            f"vision_feature_select_strategy is {strategy!r}.",
            "Only 'default' and 'full' are known; check config.json.",
        )
    size = config.vision_config.image_size
    vision = GraphSpec(
        module=LlavaVision(inner.vision_tower, inner.multi_modal_projector, config.vision_feature_layer, strategy),
        args=lambda dtype: (torch.zeros(2, 3, size, size),),
        dynamic=({0: "images"},),
        inputs=("pixel_values",),
        outputs=("image_features",),
        taps=("vision",),
    )
    return {
        "vision_encoder": vision,
        "embed_tokens": embedding_spec(inner.language_model.embed_tokens),
        "decoder": decoder_spec(inner.language_model, model.lm_head),
    }


LLAVA = register(Family("llava", _build))
