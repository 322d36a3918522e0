"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from safetykit.toolkit.model.processors import without_videos

from .common import IM_END, IM_START, LAYERS, PATCH, WIDTH, checkpoint, save, template, text, tokenizer

_PICTURE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_NAMED = {"image_token": _PICTURE[1], "video_token": "<|video_pad|>"}
_MERGED = (2 * PATCH) ** 2  # pixels of an image token


def _words() -> PreTrainedTokenizerFast:
    return tokenizer(_NAMED, [_PICTURE[0], _PICTURE[2], IM_START, IM_END], eos=IM_END)


def _processor(made: type, words: PreTrainedTokenizerFast) -> object:
    pixels = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 4 * _MERGED, "longest_edge": 24 * _MERGED}
    )
    return without_videos(made, image_processor=pixels, tokenizer=words, chat_template=template("".join(_PICTURE)))


def _ids(words: PreTrainedTokenizerFast) -> dict:
    return {
        "image_token_id": words.convert_tokens_to_ids(_PICTURE[1]),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": words.convert_tokens_to_ids(_PICTURE[0]),
        "vision_end_token_id": words.convert_tokens_to_ids(_PICTURE[2]),
    }


def _rope(*section: int) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}}


def _tower(**options: object) -> dict:
    merging = {"spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"depth": 2, "num_heads": 2, "patch_size": PATCH, **merging, **options}


@checkpoint("qwen2_vl")
def qwen2_vl(folder: Path) -> None:
    words = _words()
    config = Qwen2VLConfig(
        text_config=text(words, **_rope(1, 1, 2)),
        vision_config=_tower(embed_dim=16, hidden_size=WIDTH, mlp_ratio=2),
        **_ids(words),
    )
    save(folder, lambda: Qwen2VLForConditionalGeneration(config), _processor(Qwen2VLProcessor, words))


@checkpoint("qwen2_5_vl")
def qwen2_5_vl(folder: Path) -> None:
    words = _words()
    windows = {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=text(words, **_rope(1, 1, 2)),
        vision_config=_tower(hidden_size=16, out_hidden_size=WIDTH, intermediate_size=32, **windows),
        **_ids(words),
    )
    save(folder, lambda: Qwen2_5_VLForConditionalGeneration(config), _processor(Qwen2_5_VLProcessor, words))


@checkpoint("qwen3_vl")
def qwen3_vl(folder: Path) -> None:
    """One feature joins after the first layer, one after the last."""
    words = _words()
    sizes = {"hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 32, "num_position_embeddings": 36}
    config = Qwen3VLConfig(
        text_config=text(words, head_dim=WIDTH // 4, **_rope(2, 1, 1)),
        vision_config=_tower(**sizes, deepstack_visual_indexes=list(range(LAYERS))),
        **_ids(words),
    )
    save(folder, lambda: Qwen3VLForConditionalGeneration(config), _processor(Qwen3VLProcessor, words))
