"""What names do not tell about a type's configuration or processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .shrinking import HEAD, PATCH, TILE, WIDTH

_SIDE = TILE // PATCH
_SQUARE = {"height": TILE, "width": TILE}
_AREA = {"shortest_edge": TILE * TILE, "longest_edge": 16 * TILE * TILE}
_MROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [2, 1, 1],
}
_GLM: Mapping[str, Any] = {"text_config.rope_parameters": _MROPE}

# By dotted name from the configuration.
CONFIG: Mapping[str, Mapping[str, Any]] = {
    "glm4v": _GLM,
    "glm46v": _GLM,
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "glm4v_moe": _GLM,
    "aya_vision": {"downsample_factor": 2},
    "aria": {
        "vision_config.image_size": 980,
        "vision_config.patch_size": 140,
        "projector_patch_to_query_dict": {49: 4},
    },
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE},
    },
    "ernie4_5_vl_moe": {"text_config.rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}},
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "text_config.n_group": 1,
        "text_config.topk_group": 1,
        "vision_config.sam_config.downsample_channels": [WIDTH, WIDTH],
    },
    "chameleon": {
        "vq_config.num_embeddings": 16,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
    },
    "janus": {
        "vq_config.num_embeddings": 16,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.num_patches": 4,
    },
    "emu3": {
        "vq_config.codebook_size": 16,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1],
    },
    "llava_next_video": {"image_grid_pinpoints": [[TILE, 2 * TILE], [2 * TILE, TILE]]},
    "mllama": {"vision_config.vision_output_dim": 3 * WIDTH, "text_config.cross_attention_layers": [0]},
    "paddleocr_vl": {
        "text_config.rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0, "mrope_section": [4, 2, 2]}
    },
    "qwen2_5_omni_thinker": {
        "vision_start_token_id": 5,
        "text_config.rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0},
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "hunyuan_vl": {
        "text_config.head_dim": HEAD,
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]},
    },
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "2/4",
        "spatial_target_layers": [1],
        "image_grid_pinpoints": [[TILE, TILE], [TILE, 2 * TILE], [2 * TILE, TILE]],
    },
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": HEAD,
        "text_config.indexer_budget": 8,
        "text_config.indexer_compress_ratio": 2,
    },
    "dots3_note": {"vision_config.adapter_in_dim": WIDTH},
}

# Arguments of the processor's class.
PROCESSOR: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"patch_size": PATCH, "img_size": TILE, "downsample_factor": 2},
    "idefics2": {"image_seq_len": 4},
    "granite_docling": {"image_seq_len": 1},
    "aria": {"size_conversion": {980: 1}},
    "idefics": {"image_size": TILE},
    "chameleon": {"image_seq_length": 64},
    "qianfan_ocr": {"image_seq_length": 4},
}

# Arguments of the picture processor's class.
PICTURES: Mapping[str, Mapping[str, Any]] = {
    "llava_next_video": {"image_grid_pinpoints": [[TILE, 2 * TILE], [2 * TILE, TILE]]},
    "idefics2": {"size": {"shortest_edge": TILE, "longest_edge": 2 * TILE}, "do_image_splitting": False},
    "idefics": {"image_size": TILE},
    "video_llava": {"size": {"shortest_edge": TILE}, "crop_size": _SQUARE},
    "minicpmv4_6": {"scale_resolution": TILE, "max_slice_nums": 1},
    "minicpmv4_7": {"scale_resolution": TILE, "max_slice_nums": 1},
    "emu3": {"min_pixels": 16 * 16, "max_pixels": 32 * 32},
    "janus": {"min_size": TILE},
    "deepseek_vl": {"min_size": TILE},
    "deepseek_vl_hybrid": {"min_size": TILE, "high_res_size": _SQUARE, "high_res_min_size": TILE},
}

# What stands for a picture in the chat template, where it is not the processor's image token.
PICTURE: Mapping[str, str] = {
    "blip-2": "",
    "instructblip": "",
    "blip": "",
    "git": "",
    "idefics": "<image>",
    "hunyuan_vl": "<image_start><image><image_end>",
    "mllama": "<|image|>",
    "qianfan_ocr": "<image>",
}

# The token that stands for a feature, where it is not the processor's image token.
FEATURE: Mapping[str, str] = {"ovis2": "<IMG_ATOM>"}

# Types whose processor makes the image token itself, if the tokenizer has none.
UNNAMED = ("blip-2", "instructblip", "instructblipvideo")

# Words that the tokenizer must have.
WORDS: Mapping[str, Sequence[str]] = {
    "chameleon": [f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(at))}Z" for at in range(16)],
    "emu3": [*(f"<|visual token {at:06d}|>" for at in range(16)), "<|extra_200|>"],
    "fuyu": ["|SPEAKER|", "|NEWLINE|"],
}

# Classes of processors that transformers does not name for the type.
CLASS: Mapping[str, str] = {
    "cosmos3_omni": "Qwen3VLProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "fast_vlm": "LlavaProcessor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
}

# Types whose picture processor it has.
PICTURES_OF: Mapping[str, str] = {
    "glm4v_moe": "glm4v",
    "glm_ocr": "glm46v",
    "qwen3_vl_moe": "qwen3_vl",
    "diffusion_gemma": "gemma4",
    "fast_vlm": "llava",
    "qwen2_5_omni_thinker": "qwen2_vl",
    "qwen3_omni_moe_thinker": "qwen2_vl",
}

# Arguments of a configuration that has no usable default.
START: Mapping[str, Mapping[str, Any]] = {
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}},
}
