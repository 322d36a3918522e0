"""A plain checkpoint in the other forms that checkpoints come in: shards, caches, LoRA adapters, quantised weights.

Quantised weights are codes and scales as each format has them, rounded to the nearest, in the decoder's layers alone.
GPTQ's and AWQ's hold random codes, which nothing reads without their package.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .hub_cache import in_cache

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LEFT_OUT = ["lm_head", "vision_tower", "multi_modal_projector"]
_PACKED = 8  # numbers of 4 bits in one of 32


def copy_plain(source: Path, out: Path) -> Path:
    """The checkpoint as it is."""
    return shutil.copytree(source, out)


def shard_in_bf16(source: Path, out: Path) -> Path:
    """Two shards in bfloat16 and their index."""
    copy_plain(source, out)
    tensors = {name: value.bfloat16() for name, value in load_file(out / _FILE).items()}
    (out / _FILE).unlink()
    places = {name: f"model-{at % 2 + 1:05}-of-00002.safetensors" for at, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == file}, out / file, {"format": "pt"})
    (out / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return out


def cached(source: Path, out: Path) -> Path:
    """A snapshot in a cache of the Hugging Face Hub."""
    return in_cache(source, out, "org/model")


def with_lora(source: Path, out: Path) -> Path:
    """A folder of a LoRA adapter alone, on every ``q_proj``; its configuration names the checkpoint."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(source, local_files_only=True)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(out)
    return out


def bitsandbytes(source: Path, out: Path, **options: Any) -> Path:
    """Quantised by bitsandbytes, which must be installed."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings = BitsAndBytesConfig(llm_int8_skip_modules=_LEFT_OUT, **options)
    model = AutoModelForImageTextToText.from_pretrained(
        source, quantization_config=settings, dtype=torch.float32, local_files_only=True
    )
    copy_plain(source, out)
    (out / _FILE).unlink()
    model.save_pretrained(out)
    return out


def fp8(source: Path, out: Path) -> Path:
    """8-bit floats with a scale for each block of 128 × 128."""

    def rounded(weight: Tensor) -> dict[str, Tensor]:
        blocks = [-(-size // 128) for size in weight.shape]
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale_inv": scale.expand(blocks).clone()}

    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": _LEFT_OUT,
    }
    return _quantised(source, out, settings, rounded)


def compressed_tensors(source: Path, out: Path) -> Path:
    """8-bit integers, four in one of 32 bits, with a scale a row."""

    def rounded(weight: Tensor) -> dict[str, Tensor]:
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        codes = ((weight / scale).round() + 128).to(torch.uint8)
        return {
            "weight_packed": codes.view(torch.int32),
            "weight_shape": torch.tensor(weight.shape),
            "weight_scale": scale,
        }

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [f"re:.*{name}.*" for name in _LEFT_OUT],
    }
    return _quantised(source, out, settings, rounded)


def gptq(source: Path, out: Path) -> Path:
    """The shapes of GPTQ with 4 bits."""
    settings = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "sym": True}
    return _quantised(source, out, settings, lambda weight: _codes(weight, rows=True))


def awq(source: Path, out: Path) -> Path:
    """The shapes of AWQ with 4 bits."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": True, "version": "gemm"}
    return _quantised(source, out, settings, lambda weight: _codes(weight, rows=False))


def _codes(weight: Tensor, *, rows: bool) -> dict[str, Tensor]:
    out, inputs = weight.shape
    packed = (inputs // _PACKED, out) if rows else (inputs, out // _PACKED)
    random = torch.Generator().manual_seed(0)
    return {
        "qweight": torch.randint(-(2**31), 2**31, packed, generator=random).to(torch.int32),
        "qzeros": torch.zeros(1, out // _PACKED, dtype=torch.int32),
        "scales": torch.full((1, out), 0.01, dtype=torch.float16),
    }


def _quantised(
    source: Path, out: Path, settings: dict[str, Any], rounded: Callable[[Tensor], dict[str, Tensor]]
) -> Path:
    """The checkpoint with the linear layers of the decoder's blocks quantised, and its configuration saying so."""
    copy_plain(source, out)
    tensors = load_file(out / _FILE)
    for name in [name for name, value in tensors.items() if ".layers." in name and "vision" not in name]:
        if name.endswith("proj.weight"):
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}.{part}": value for part, value in rounded(tensors.pop(name)).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / _FILE, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return out


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "fp32": copy_plain,
    "bf16 shards": shard_in_bf16,
    "hub cache": cached,
    "PEFT": with_lora,
    "bitsandbytes nf4": lambda source, out: bitsandbytes(source, out, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes int8": lambda source, out: bitsandbytes(source, out, load_in_8bit=True),
    "GPTQ": gptq,
    "AWQ": awq,
    "compressed-tensors": compressed_tensors,
    "FP8": fp8,
}
