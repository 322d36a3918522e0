"""A decoder of any size with random weights, for benches of latency."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HEAD = 64  # width of a head


def random_llama(layers: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    """A Llama with heads of 64 channels, every two of which share keys and values; the same weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // (2 * HEAD),
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()
