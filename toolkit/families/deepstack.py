"""Features that join later (DeepStack): some are added to the image tokens *between* the first decoder layers.

After layers 0, 1, … The site ``decoder.layers.N`` is the output of the layer, before that addition. They come as one
input ``deepstack``, side by side, with zeros at tokens of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

from .family import Family, GraphInput
from .generic import logits_of

if TYPE_CHECKING:
    from torch import Tensor


class DeepStacked(Family):
    """A decoder that such features join; the vision graph gives them behind the image features."""

    vision_outputs = ("image_features", "deepstack_features")
    scattered: ClassVar[Mapping[str, str]] = {"deepstack_features": "deepstack"}

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        width = config.get_text_config().hidden_size * len(config.vision_config.deepstack_visual_indexes)
        return (*super().decoder_inputs(config), GraphInput("deepstack", "weights", ("batch", "sequence", width)))

    def decoder(
        self,
        model: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any,
        *,
        deepstack: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        with _joining(model.get_decoder(), deepstack):
            return logits_of(model, inputs_embeds, attention_mask, cache, **inputs)


@contextmanager
def _joining(decoder: Any, deepstack: Tensor) -> Iterator[None]:
    """Let a decoder of transformers add what it is given here, which has zeros elsewhere, until the block ends."""
    parts = list(deepstack.split(decoder.config.hidden_size, dim=-1))

    def given(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"visual_pos_masks": None, "deepstack_visual_embeds": parts}

    handle = decoder.register_forward_pre_hook(given, with_kwargs=True)
    try:
        with patch.object(decoder, "_deepstack_process", lambda states, _, joined: states + joined):
            yield
    finally:
        handle.remove()
