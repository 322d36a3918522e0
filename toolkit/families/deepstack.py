"""Features that join later (DeepStack): some are added to the image tokens *between* the first decoder layers.

After layers 0, 1, … The site ``decoder.layers.N`` is the output of the layer, before that addition. They come as one
input ``deepstack``, side by side, with zeros at tokens of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from .family import GraphInput

if TYPE_CHECKING:
    from torch import Tensor

SCATTERED = {"deepstack_features": "deepstack"}
OUTPUTS = ("image_features", "deepstack_features")


def deepstack_input(config: Any) -> GraphInput:
    """The decoder's input for them."""
    width = config.get_text_config().hidden_size * len(config.vision_config.deepstack_visual_indexes)
    return GraphInput("deepstack", "weights", ("batch", "sequence", width))


@contextmanager
def joining(decoder: Any, deepstack: Tensor) -> Iterator[None]:
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
