"""Gemma 3, PaliGemma and PaliGemma 2."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from .common import IM_END, IM_START, PATCH, TILE, WIDTH, checkpoint, save, template, text, tokenizer, vision

_SQUARE = {"height": TILE, "width": TILE}
_HEADS = {"head_dim": WIDTH // 4, "query_pre_attn_scalar": WIDTH // 4}
_WINDOW = 6  # shorter than the prompts, and than a picture of PaliGemma


@checkpoint("gemma3")
def gemma3(folder: Path) -> None:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(names, [IM_START, IM_END], eos=IM_END)
    tokens = (TILE // PATCH // 2) ** 2
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size=_SQUARE),
        tokenizer=words,
        image_seq_length=tokens,
        chat_template=template(names["boi_token"]),
    )
    config = Gemma3Config(
        text_config=text(
            words,
            **_HEADS,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=_WINDOW,
            tie_word_embeddings=True,
        ),
        vision_config=vision(),
        mm_tokens_per_image=tokens,
        image_token_id=words.convert_tokens_to_ids(names["image_token"]),
        boi_token_index=words.convert_tokens_to_ids(names["boi_token"]),
        eoi_token_index=words.convert_tokens_to_ids(names["eoi_token"]),
    )
    save(folder, lambda: Gemma3ForConditionalGeneration(config), processor)


def _paligemma(folder: Path, **decoder: object) -> None:
    words = tokenizer({"image_token": "<image>"})
    pictures = SiglipImageProcessorPil(size=_SQUARE)
    pictures.image_seq_length = (TILE // PATCH) ** 2
    processor = PaliGemmaProcessor(image_processor=pictures, tokenizer=words)
    config = PaliGemmaConfig(
        text_config=text(words, **_HEADS, tie_word_embeddings=True, **decoder),
        vision_config={**vision(), "model_type": "siglip_vision_model"},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )
    save(folder, lambda: PaliGemmaForConditionalGeneration(config), processor)


@checkpoint("paligemma")
def paligemma(folder: Path) -> None:
    _paligemma(folder, model_type="gemma")


@checkpoint("paligemma2")
def paligemma2(folder: Path) -> None:
    """Soft caps low enough to be felt; windows shorter than a picture."""
    caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}
    _paligemma(folder, model_type="gemma2", sliding_window=_WINDOW, **caps)
