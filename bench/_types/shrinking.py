"""Configurations of a type, made small: two layers, narrow, few heads, a picture of a few patches.

What to do with a number is told by its name, for names are alike where the code is; :data:`.overrides.CONFIG` has what
is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, HEAD, DEPTH, INNER = 32, 2, 16, 2, 64
TILE, PATCH, EXPERTS = 16, 4, 4

_WIDTHS = [
    "hidden_size",
    "embed_dim",
    "d_model",
    "dim",
    "hidden_dim",
    "out_hidden_size",
    "projection_dim",
    "vision_hidden_size",
    "output_dim",
    "encoder_hidden_size",
    "projector_hidden_size",
    "mm_hidden_size",
    "text_hidden_size",
    "qk_hidden_size",
    "v_hidden_size",
    "output_channels",
    "audio_hidden_size",
    "out_dim",
    "word_embed_proj_dim",
    "projection_hidden_size",
    "embedding_dim",
    "vision_output_dim",
    "projector_input_dim",
    "projector_output_dim",
    "input_dim",
    "attention_hidden_size",
    "in_hidden_size",
    "kv_dim",
    "vision_embed_dim",
    "resampler_dim",
    "merger_hidden_size",
    "pooler_output_dim",
]
_INNERS = [
    "intermediate_size",
    "ffn_dim",
    "mlp_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "projection_intermediate_size",
    "alignment_intermediate_size",
    "adapter_intermediate_size",
    "intermediate_size_mlp",
    "block_ff_dim",
    "dense_intermediate_size",
    "projector_intermediate_size",
    "vision_ffn_dim",
    "resampler_intermediate_size",
]
_MOE_INNERS = ["moe_intermediate_size", "shared_expert_intermediate_size", "expert_intermediate_size"]
_DEPTHS = [
    "num_hidden_layers",
    "num_layers",
    "depth",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "layers",
    "resampler_depth",
    "num_global_layers",
    "text_num_layers",
    "num_blocks",
]
_HEADS = [
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
    "attention_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "resampler_n_heads",
    "resampler_heads",
    "num_key_value_heads",
    "kv_heads",
    "qk_heads",
    "vision_num_heads",
    "num_global_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "swa_num_attention_heads",
    "swa_num_key_value_heads",
    "index_n_heads",
    "num_attention_groups",
]
_HEAD_WIDTHS = [
    "head_dim",
    "global_head_dim",
    "attention_head_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "resampler_head_dim",
    "v_head_dim",
    "qk_head_dim",
    "kv_channels",
    "swa_head_dim",
    "index_head_dim",
]
_EXPERTS = ["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"]
_EXACT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "patch_size": PATCH,
    "max_num_tiles": 4,
    "num_query_tokens": 4,
    "resampler_n_latents": 4,
    "latent_query_num": 4,
    "image_seq_length": (TILE // PATCH) ** 2,
    "sliding_window": 6,
    "window_size": 2 * PATCH,
    "attention_chunk_size": 8,
    "attention_dropout": 0.0,
    "pixel_shuffle_ratio": 0.5,
    "num_patches": (TILE // PATCH) ** 2,
    "max_num_patches": (TILE // PATCH) ** 2,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "cross_layer_interval": 1,
    "linear_conv_kernel_dim": 3,
    "global_attn_indexes": [1],
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0, 1],
    "cross_attention_layers": [1],
    "intermediate_layers_indices": [0, 1],
    "use_pooler": False,
    "num_nextn_predict_layers": 0,
    "mtp_num_hidden_layers": 0,
    "qformer_hidden_size": WIDTH,
    "cross_attention_frequency": 1,
    "embed_dims": None,
    "num_position_embeddings": (TILE // PATCH) ** 2,
    "max_frames": 4,
}
_IMAGE_SIZES = ("image_size", "img_size", "base_size", "crop_size")


def shrunk(value: Mapping[str, Any], vocabulary: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration, its own parts included, in small.

    Args:
        value: the configuration as a dictionary.
        vocabulary: size of the tokenizer's.
        more: settings by dotted name that are given, in the place of what names tell.
    """
    return _shrunk(value, vocabulary, more, "")


def _shrunk(value: Mapping[str, Any], vocabulary: int, more: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    depth = next((value[name] for name in _DEPTHS if isinstance(value.get(name), int)), None)
    for name, old in value.items():
        place = f"{path}{name}"
        if name in (
            "per_layer_config",
            "id2label",
            "label2id",
            "transformers_version",
            "architectures",
            "problem_type",
        ):
            continue
        if isinstance(old, Mapping) and (name.endswith("config") or "model_type" in old):
            found[name] = _shrunk(old, vocabulary, more, f"{place}.")
        elif name in ("rope_parameters", "rope_scaling") and isinstance(old, Mapping):
            found[name] = old
        else:
            found[name] = _number(name, old, vocabulary, depth)
    found |= {
        name.removeprefix(path): given
        for name, given in more.items()
        if name.startswith(path) and "." not in name.removeprefix(path)
    }
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(found.get(name), Mapping):
            found[name] = _rope(found[name], found.get("head_dim") or WIDTH // HEADS)
    return found


def _number(name: str, old: Any, vocabulary: int, depth: int | None) -> Any:
    if isinstance(old, bool) or old is None:
        return old
    for names, new in (
        (_WIDTHS, WIDTH),
        (_INNERS, INNER),
        (_MOE_INNERS, WIDTH),
        (_DEPTHS, DEPTH),
        (_HEADS, HEADS),
        (_HEAD_WIDTHS, HEAD),
        (_EXPERTS, EXPERTS),
    ):
        if name in names:
            return [new] * DEPTH if isinstance(old, list) else new
    if name in _EXACT:
        return _EXACT[name]
    if name in _IMAGE_SIZES:
        return [TILE, TILE] if isinstance(old, list | tuple) else TILE
    if name == "vocab_size":
        return vocabulary
    if name == "max_position_embeddings":
        return min(int(old), 4096)
    if isinstance(old, list) and depth and len(old) == depth > DEPTH:
        other = [one for one in old if one != old[-1]]
        return [*other[:1], old[-1]] if other else old[:DEPTH]
    return old


def _rope(old: Mapping[str, Any], head: int) -> dict[str, Any]:
    """Rotary settings whose sections add up to half of what is turned of a head."""
    found = {key: _rope(one, head) if isinstance(one, Mapping) else one for key, one in old.items()}
    if "partial_rotary_factor" in found and found["partial_rotary_factor"] < 0.5:
        found["partial_rotary_factor"] = 0.5
    if isinstance(sections := found.get("mrope_section"), list):
        turned = int(head * found.get("partial_rotary_factor", 1.0)) // 2
        share = turned // len(sections)
        found["mrope_section"] = [turned - share * (len(sections) - 1), *[share] * (len(sections) - 1)]
    return found
