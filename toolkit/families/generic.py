"""Types without a file of their own: what transformers' conventions make of them.

Pictures of one size, whole or in tiles, become rows of features by ``get_image_features(pixel_values)``. The decoder
takes embeddings, mask, positions that count up, and a cache of keys and values. Whether a type is so is not told by
its name: :mod:`.trial` looks at its code and runs it without values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...adapters.errors import UsageError
from .family import Family, GraphInput
from .windows import window_mask

if TYPE_CHECKING:
    from torch import Tensor

_SIZES = ("image_size", "resolution")
_TOWERS = ("vision_config", "vq_config")


class AnyFamily(Family):
    """Tower and projector as ``get_image_features`` calls them; the decoder as the model itself calls it."""

    def obstacles(self, config: Any) -> Mapping[str, str]:
        from .trial import trial_of

        return trial_of(config, self).obstacles

    def taps_of(self, model: Any) -> tuple[str, ...]:
        from .trial import trial_of

        return trial_of(model.config, self).taps

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        height, width = picture_size(config)
        return (GraphInput("pixel_values", "float32", ("images", 3, height, width)),)

    def vision(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
        from .trial import named, seen

        features, inner = seen(model, self, pixel_values)
        return features, *named(features, inner).values()

    def decoder(
        self, model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any, **inputs: Tensor
    ) -> Tensor:
        return logits_of(model, inputs_embeds, attention_mask, cache, **inputs)


def picture_size(config: Any) -> tuple[int, int]:
    """Height and width, in pixels, of what the tower reads.

    Raises:
        UsageError: the configuration does not say it.
    """
    for part in (getattr(config, name, None) for name in _TOWERS):
        size = next((found for name in _SIZES if (found := getattr(part, name, None)) is not None), None)
        if isinstance(size, int):
            return size, size
        if size is not None and len(size) == 2:
            return int(size[0]), int(size[1])
    raise UsageError(
        f"The configuration ({config.model_type}) does not say of which size its pictures are.",
        "Only towers of one size are exported without a family of their own.",
    )


def logits_of(model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any, **inputs: Tensor) -> Tensor:
    """Logits [batch, sequence, vocab] of the model itself, fed embeddings; layers with windows keep the whole past."""
    mask = window_mask(model.get_decoder().config, attention_mask, inputs_embeds)
    logits: Tensor = model(
        inputs_embeds=inputs_embeds, attention_mask=mask, past_key_values=cache, use_cache=True, **inputs
    ).logits
    return logits
