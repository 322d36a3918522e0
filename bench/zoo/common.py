"""What the tiny checkpoints of all families share: words, text and vision settings, weights worth comparing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from safetykit.toolkit.reference.model import build_tokenizer

WIDTH, LAYERS = 32, 2
TILE, PATCH = 16, 4  # pixels
IM_START, IM_END = "<|im_start|>", "<|im_end|>"

BUILDERS: dict[str, Callable[[Path], None]] = {}
# Standard deviation of what a layer gives for inputs of 1: above 1 errors grow on their way, and show.
GAIN: ContextVar[float] = ContextVar("gain", default=1.5)


def checkpoint(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function that writes the checkpoint of model type ``name`` into a folder."""

    def add(build: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in BUILDERS, name
        BUILDERS[name] = build
        return build

    return add


def tokenizer(named: Mapping[str, str], more: Sequence[str] = (), eos: str = "</s>") -> PreTrainedTokenizerFast:
    """The reference tokenizer's words with a family's special tokens; ``named`` ones become attributes."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=eos,
        extra_special_tokens=dict(named),
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens(list(more), special_tokens=True)
    return made


def text(words: PreTrainedTokenizerFast, **options: object) -> dict:
    """Settings of a small decoder, for any Llama-like configuration."""
    return {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "tie_word_embeddings": False,
        **options,
    }


def vision(**options: object) -> dict:
    """Settings of a small tower."""
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
        **options,
    }


def clip(**options: object) -> CLIPVisionConfig:
    return CLIPVisionConfig(**vision(**options))


def template(picture: str) -> str:
    """A chat template with turn marks, in which ``picture`` stands for each picture."""
    return (
        "{% for message in messages %}" + IM_START + "{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}"
        + picture
        + "\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        + IM_END
        + "\n{% endfor %}{% if add_generation_prompt %}"
        + IM_START
        + "assistant\n{% endif %}"
    )


def save(folder: Path, make: Callable[[], nn.Module], processor: object, seed: int = 0) -> None:
    """Write model and processor. Weights are random, of a size that gives activations and logits of a few units, so
    that a wrong computation shows; norms and positions are no longer the identity and zero."""
    torch.manual_seed(seed)
    model = make()
    for name, weight in model.named_parameters():
        if "embed_tokens" in name or "position" in name or "newline" in name or "cls_token" in name:
            nn.init.normal_(weight, std=0.5)
        elif weight.ndim >= 2:
            nn.init.normal_(weight, std=GAIN.get() * weight[0].numel() ** -0.5)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
