"""Idefics3 and SmolVLM."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from safetykit.toolkit.model.processors import without_videos

from .common import IM_END, IM_START, PATCH, TILE, checkpoint, save, template, text, tokenizer, vision

_TOKENS = (TILE // PATCH // 2) ** 2
_MORE = (
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    IM_START,
    IM_END,
)
_PICTURES = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}


@checkpoint("idefics3")
def idefics3(folder: Path) -> None:
    words = tokenizer({"image_token": "<image>"}, _MORE, eos=IM_END)
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(**_PICTURES),
        tokenizer=words,
        image_seq_len=_TOKENS,
        chat_template=template("<image>"),
    )
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**vision()),
        text_config=LlamaConfig(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
    )
    save(folder, lambda: Idefics3ForConditionalGeneration(config), processor)


@checkpoint("smolvlm")
def smolvlm(folder: Path) -> None:
    named = {"fake_image_token": _MORE[0], "end_of_utterance_token": _MORE[1], "global_image_token": _MORE[2]}
    words = tokenizer({"image_token": "<image>", "video_token": "<video>", **named}, _MORE[3:], eos=IM_END)
    processor = without_videos(
        SmolVLMProcessor,
        image_processor=SmolVLMImageProcessorPil(**_PICTURES),
        tokenizer=words,
        image_seq_len=_TOKENS,
        chat_template=template("<image>"),
    )
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**vision()),
        text_config=LlamaConfig(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
    )
    save(folder, lambda: SmolVLMForConditionalGeneration(config), processor)
