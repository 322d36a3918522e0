"""A LLaVA checkpoint with random weights, for latency at a size where matrix products dominate.

    python bench/random_model.py OUT [--layers 16] [--width 1024]

The reference VLM's tower, tokenizer and processor, and a larger decoder: 200 million parameters by default. Its
answers mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from safetykit.bench.skeleton import arguments, run
from safetykit.toolkit.reference.model import build_model, build_processor, build_tokenizer


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args(given)
    config = build_model().config
    text = config.text_config
    text.hidden_size, text.num_hidden_layers = options.width, options.layers
    text.intermediate_size = options.width * 11 // 4
    text.head_dim, text.num_attention_heads = 64, options.width // 64
    text.num_key_value_heads = options.width // 64
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(options.out)
    build_processor(build_tokenizer()).save_pretrained(options.out)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters in {options.out}")


if __name__ == "__main__":
    run(main)
