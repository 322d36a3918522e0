"""InternVL."""

from __future__ import annotations

from pathlib import Path

from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from safetykit.toolkit.model.processors import without_videos

from .common import IM_END, IM_START, PATCH, TILE, checkpoint, save, template, text, tokenizer, vision

_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@checkpoint("internvl")
def internvl(folder: Path) -> None:
    words = tokenizer(_NAMED, [IM_START, IM_END], eos=IM_END)
    tokens = (TILE // PATCH // 2) ** 2
    processor = without_videos(
        InternVLProcessor,
        image_processor=GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, max_patches=4),
        tokenizer=words,
        image_seq_length=tokens,
        chat_template=template("<IMG_CONTEXT>"),
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision(image_size=[TILE, TILE], patch_size=[PATCH, PATCH])),
        text_config=Qwen2Config(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )
    save(folder, lambda: InternVLForConditionalGeneration(config), processor)
