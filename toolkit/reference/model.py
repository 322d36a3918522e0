"""Builds the empty model organism: a LLaVA of about 2.7 million parameters, its tokenizer and its processor."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .atlas import TILE
from .language import vocabulary

PATCH = 12  # pixels: 16 image tokens
IMAGE_TOKENS = (TILE // PATCH) ** 2
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
# The turn markup of LLaVA-1.5. The tokenizer drops case and line breaks.
CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{% if message['role'] == 'user' %} {% else %}</s>{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower-cased; punctuation stands alone; unknown words become <unk>; no start token."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # Joins words with spaces and closes up the space before punctuation.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Picture to pixel values [n, 3, 48, 48] in [-1, 1] and prompt to ids, with 16 <image> tokens a picture."""
    square = {"height": TILE, "width": TILE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained model in fp32: a 5-block CLIP tower, a two-layer projector, an 8-block Llama, a tied head."""
    ids = {token: i for i, token in enumerate(SPECIAL)}
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + len(vocabulary()),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=128,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    config.safetykit_model_organism = True  # cards and reports say so wherever its figures stand
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    # Unit-variance queries and keys, and embeddings of a size that can be told apart: from the usual 0.02 a model
    # this narrow spends its first hundreds of steps growing them.
    for name, weight in model.model.language_model.named_parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.08 if "embed" in name else weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data /= 4
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=24, pad_token_id=ids["<pad>"], eos_token_id=ids["</s>"]
    )
    return model
