"""Gemma 3: ``Gemma3ForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            SigLIP
    ``model.multi_modal_projector``   average pooling, norm, one product
    ``model.language_model``          Gemma 3: norms after attention and MLP too, some layers see a window only
    ``lm_head``                       tied to the embedding, which scales its rows

Tokens of one picture see each other in both directions. The model builds that mask outside its decoder; here the graph
builds it from ``token_type_ids`` (1 at image tokens). A picture's tokens have to come in one call. The cache keeps the
whole past in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...adapters.errors import UsageError
from .family import Arrays
from .masks import GroupedFamily, decoded
from .registry import register
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.requests import Inputs


@register
class Gemma3(GroupedFamily):
    """Pictures seen in both directions; layers that see a window."""

    name, title = "gemma3", "Gemma 3"
    runs_in: ClassVar[Mapping[str, Any]] = {"genai": "gemma3"}
    token_types = "pictures"

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        return [list(row) for row in pictures] if any(pictures) else None

    def picture_text(self, processor: Any) -> tuple[str, str, str, str]:
        tokenizer = processor.tokenizer
        begin = tokenizer.boi_token
        return begin, f"\n\n{begin}", tokenizer.image_token, f"{tokenizer.eoi_token}\n\n"

    def check(self, config: Any) -> None:
        text = config.get_text_config()
        require_known_layers(text)
        if text.use_bidirectional_attention:
            raise UsageError(
                "The decoder (gemma3) attends in both directions everywhere.", "Only decoders that answer are exported."
            )

    def decoder(
        self,
        model: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any,
        position_ids: Tensor,
        token_type_ids: Tensor,
    ) -> Tensor:
        """A window bounds what a picture sees of itself, too."""
        pictures = numbered_runs(token_type_ids == 1)
        states = decoded(model, inputs_embeds, attention_mask, cache, position_ids, pictures, window_bounds_groups=True)
        return model.lm_head(states)

    def prefill(self, config: Any, inputs: Inputs) -> Arrays:
        return super().prefill(config, inputs) | {"token_type_ids": inputs.vision_mask.astype(np.int64)}

    def step(self, config: Any, before: Mapping[str, np.ndarray], mask: np.ndarray) -> Arrays:
        found = super().step(config, before, mask)
        return found | {"token_type_ids": np.zeros_like(found["position_ids"])}


def numbered_runs(image: Tensor) -> Tensor:
    """Which run of image tokens each token [batch, sequence] belongs to, from 0; −1 elsewhere."""
    import torch
    from torch.nn.functional import pad

    begins = image & ~pad(image, (1, 0))[:, :-1]
    return torch.where(image, begins.to(torch.int64).cumsum(dim=1) - 1, -1)
