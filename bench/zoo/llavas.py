"""LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from safetykit.toolkit.model.processors import without_videos

from .common import IM_END, IM_START, PATCH, TILE, checkpoint, clip, save, template, text, tokenizer, vision

_SQUARE = {"height": TILE, "width": TILE}


@checkpoint("llava")
def llava(folder: Path) -> None:
    llava_of(LlamaConfig, folder)


def llava_of(decoder: type[PreTrainedConfig], folder: Path, **options: object) -> None:
    """LLaVA-1.5 with a decoder of another type; ``options`` are of its configuration."""
    words = tokenizer({"image_token": "<image>"}, [IM_START, IM_END], eos=IM_END)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size=_SQUARE),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    config = LlavaConfig(
        vision_config=clip(),
        text_config=decoder(**text(words, **options)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-2,
    )
    save(folder, lambda: LlavaForConditionalGeneration(config), processor)


@checkpoint("llava_next")
def llava_next(folder: Path) -> None:
    words = tokenizer({"image_token": "<image>"}, [IM_START, IM_END], eos=IM_END)
    grid = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE}, crop_size=_SQUARE, image_grid_pinpoints=grid
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=LlamaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
    )
    save(folder, lambda: LlavaNextForConditionalGeneration(config), processor)


@checkpoint("llava_onevision")
def llava_onevision(folder: Path) -> None:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"}, [IM_START, IM_END], eos=IM_END)
    grid = [[TILE * rows, TILE * columns] for rows in range(1, 5) for columns in range(1, 5)]
    processor = without_videos(
        LlavaOnevisionProcessor,
        image_processor=LlavaOnevisionImageProcessorPil(size=_SQUARE, image_grid_pinpoints=grid),
        tokenizer=words,
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=template("<image>"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision(), vision_use_head=False),
        text_config=Qwen2Config(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    save(folder, lambda: LlavaOnevisionForConditionalGeneration(config), processor)
