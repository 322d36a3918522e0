"""The two graphs every family shares: token embedding, and one causal decoder with a KV cache.

One decoder graph covers prefill (``past_sequence`` = 0) and decode. Logits come at all positions:
teacher-forced parity and logit probes need them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..adapters.errors import UsageError
from .families import GraphSpec

# Distinct sizes of two or more: an example size of 1, or two equal ones, would be fixed in the graph.
_BATCH, _SEQUENCE, _PAST = 2, 5, 3


def kv_names(n_layers: int, prefix: str) -> tuple[str, ...]:
    """``<prefix>.0.key, <prefix>.0.value, <prefix>.1.key, …``"""
    return tuple(f"{prefix}.{layer}.{part}" for layer in range(n_layers) for part in ("key", "value"))


def _filled_layer(key: torch.Tensor, value: torch.Tensor) -> DynamicLayer:
    # Filled by hand: `update` on an empty layer would trace the concatenation with an empty tensor.
    layer = DynamicLayer()
    layer.keys, layer.values = key, value
    layer.dtype, layer.device = key.dtype, key.device
    layer.is_initialized = True
    return layer


class CachedDecoder(nn.Module):
    """Decoder blocks, final norm and LM head, with the KV cache as plain tensors."""

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        """Logits [batch, sequence, vocab], then key and value [batch, heads, past + sequence, head_dim] per layer."""
        cache = DynamicCache()
        cache.layers = [_filled_layer(key, value) for key, value in past]
        states = self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.head(states), *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def decoder_spec(decoder: nn.Module, head: nn.Module) -> GraphSpec:
    """The decoder graph of a transformers text model.

    Raises:
        UsageError: some layers do not attend to the whole past (sliding window, recurrent state).
    """
    config = decoder.config
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "sliding_window", None):
        other.add("sliding_attention")
    if other:
        raise UsageError(
            f"The decoder ({config.model_type}) has layers of kind {', '.join(sorted(other))}.",
            "Only decoders in which every layer attends to the whole past are exported.",
        )
    heads, head_dim = kv_shape(config)
    batch_sequence, total, cache = (
        {0: "batch", 1: "sequence"},
        {0: "batch", 1: "total"},
        {0: "batch", 2: "past_sequence"},
    )
    n_layers = config.num_hidden_layers

    def args(dtype: torch.dtype) -> tuple[Any, ...]:
        return (
            torch.zeros(_BATCH, _SEQUENCE, config.hidden_size, dtype=dtype),
            torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
            torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_BATCH, 1),
            [
                tuple(torch.zeros(_BATCH, heads, _PAST, head_dim, dtype=dtype) for _ in range(2))
                for _ in range(n_layers)
            ],
        )

    return GraphSpec(
        module=CachedDecoder(decoder, head),
        args=args,
        dynamic=(batch_sequence, total, batch_sequence, [(cache, cache)] * n_layers),
        inputs=("inputs_embeds", "attention_mask", "position_ids", *kv_names(n_layers, "past_key_values")),
        outputs=("logits", *kv_names(n_layers, "present")),
    )


def kv_shape(config: object) -> tuple[int, int]:
    """Number of key/value heads and their width, from a text configuration."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def embedding_spec(embed_tokens: nn.Module) -> GraphSpec:
    """``input_ids`` [batch, sequence] int64 to ``inputs_embeds`` [batch, sequence, d_model]."""
    return GraphSpec(
        module=embed_tokens,
        args=lambda dtype: (torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64),),
        dynamic=({0: "batch", 1: "sequence"},),
        inputs=("input_ids",),
        outputs=("inputs_embeds",),
    )
