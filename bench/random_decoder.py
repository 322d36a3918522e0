"""A decoder of any size with random weights, for benches of latency."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safetykit.export.base.own import save_graph
from safetykit.export.base.quantise import quantise
from safetykit.export.base.specs import decoder_spec
from safetykit.export.base.tracing import export_graph
from safetykit.export.manifest import LAYOUT
from safetykit.toolkit.families import Family

HEAD = 64  # width of a head


def random_llama(layers: int, width: int, vocabulary: int, longest: int = 4096) -> LlamaForCausalLM:
    """A Llama for ``longest`` tokens, with heads of 64 channels, every two of which share keys and values; the same
    weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // (2 * HEAD),
        max_position_embeddings=longest,
    )
    return LlamaForCausalLM(config).eval()


def write_decoder(model: LlamaForCausalLM, folder: Path, precision: str) -> Path:
    """Our own export of the decoder, ``fp32`` or ``int4``; returns the graph's path."""
    graph = export_graph(decoder_spec(model, Family()), "fp32")
    if precision == "int4":
        quantise(graph)
    save_graph(graph, folder / LAYOUT.decoder)
    return folder / LAYOUT.decoder
