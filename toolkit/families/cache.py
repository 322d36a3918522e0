"""What a decoder keeps of the tokens before, layer by layer. Needs no torch.

A layer that attends keeps ``key`` and ``value`` [batch, heads, past_sequence, width]. One with a state (gated delta
rule) keeps the last inputs of its convolution, ``conv_state`` [batch, channels, kernel], and ``recurrent_state``
[batch, heads, key width, value width], whatever the number of tokens; both are zero before the first one.
"""

from __future__ import annotations

from typing import Any

from ..cache_names import STATES
from .family import GraphInput, kv_shape

_LINEAR = "linear_attention"


def has_states(text: Any) -> bool:
    """Whether some layers of a decoder keep a state instead of keys and values."""
    return _LINEAR in (getattr(text, "layer_types", None) or ())


def cache_of(text: Any) -> list[tuple[GraphInput, GraphInput]]:
    """Both parts of each layer's cache, from a text configuration."""
    heads, width = kv_shape(text)
    kinds = list(getattr(text, "layer_types", None) or [None] * text.num_hidden_layers)
    keys, values = (GraphInput(part, "weights", ("batch", heads, "past_sequence", width)) for part in ("key", "value"))
    if not has_states(text):
        return [(keys, values)] * text.num_hidden_layers
    key, value = text.linear_key_head_dim, text.linear_value_head_dim
    channels = 2 * key * text.linear_num_key_heads + value * text.linear_num_value_heads
    states = (
        GraphInput(STATES[0], "weights", ("batch", channels, text.linear_conv_kernel_dim)),
        GraphInput(STATES[1], "float32", ("batch", text.linear_num_value_heads, key, value)),
    )
    return [states if kind == _LINEAR else (keys, values) for kind in kinds[: text.num_hidden_layers]]
