"""A tiny checkpoint of a type: its real classes, a small configuration, random weights, and words of the reference."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from safetykit.toolkit.model.processors import needs_stand_ins, without_videos
from safetykit.toolkit.model.processors import processor_class as find_class

from .. import zoo
from ..zoo.common import GAIN, IM_END, IM_START, save, template, tokenizer
from . import overrides
from .shrinking import PATCH, TILE, shrunk

NAMES = tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))

_NAMED = [
    "image_token",
    "video_token",
    "audio_token",
    "boi_token",
    "eoi_token",
    "boa_token",
    "eoa_token",
    "img_line_break_token",
    "vision_start_token",
    "vision_end_token",
    "image_start_token",
    "image_end_token",
    "video_start_token",
    "video_end_token",
    "start_image_token",
    "end_image_token",
    "context_image_token",
    "image_wrapper_token",
    "eof_token",
    "image_break_token",
    "image_boundary_token",
    "vision_bos_token",
    "vision_eos_token",
    "audio_bos_token",
    "audio_eos_token",
    "image_id_start_token",
    "image_id_end_token",
    "slice_start_token",
    "slice_end_token",
]
_SPECIAL = re.compile(r'"(<[^"{} ]+>)"')


class NotBuilt(Exception):
    """The type has no processor or needs a package, as the message says."""


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint of a type into a folder.

    Raises:
        NotBuilt: with the reason.
        Exception: whatever transformers raises of a configuration that does not fit.
    """
    if name in zoo.NAMES:
        return zoo.build(name, folder, GAIN.get())
    made = processor_class(name)
    words = tokenizer(_named(name, made), [*_texts(made), *overrides.WORDS.get(name, ()), IM_START, IM_END], eos=IM_END)
    processor = _processor(name, made, words)
    picture = overrides.PICTURE.get(name, str(getattr(processor, "image_token", "")))
    processor.chat_template = processor.tokenizer.chat_template = template(picture or "")
    config = configuration(name, words, processor)
    save(folder, lambda: AutoModelForImageTextToText.from_config(config), processor)
    return folder


def processor_class(name: str) -> type:
    """The processor's class of a type, also where its module wants torchvision only to say so.

    Raises:
        NotBuilt: the type has none.
    """
    called = overrides.CLASS.get(name) or PROCESSOR_MAPPING_NAMES.get(name)
    if called is None:
        raise NotBuilt("transformers names no processor for it")
    made = find_class(called)
    if made is None:
        raise NotBuilt(f"transformers has no {called}")
    return made


def _named(name: str, made: type) -> dict[str, str]:
    """Special tokens that become attributes of the tokenizer; their texts are the type's own where its code says."""
    texts = _texts(made)
    own = {
        "image_token": (
            "<image>",
            "<|image_pad|>",
            "<|image|>",
            "<|IMAGE_PAD|>",
            "<|imgpad|>",
            "<imgpad>",
            "<im_patch>",
        ),
        "video_token": ("<video>", "<|video_pad|>", "<|video|>", "<|VIDEO_PAD|>"),
        "vision_start_token": ("<|vision_start|>", "<|VISION_START|>"),
        "vision_end_token": ("<|vision_end|>", "<|VISION_END|>"),
    }
    source = inspect.getsource(importlib.import_module(made.__module__))
    found = {}
    for attribute in (one for one in _NAMED if one in source and name not in overrides.UNNAMED):
        known = [text for text in own.get(attribute, ()) if text in texts]
        found[attribute] = known[0] if known else f"<{attribute.removesuffix('_token')}>"
    return found


def _texts(made: type) -> list[str]:
    source = inspect.getsource(importlib.import_module(made.__module__))
    return list(dict.fromkeys(_SPECIAL.findall(source)))


def picture_class(name: str) -> type:
    """The class that prepares pictures by Pillow.

    Raises:
        NotBuilt: the type has none, or none without torchvision.
    """
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(overrides.PICTURES_OF.get(name, name)) or {}
    if "pil" not in names:
        raise NotBuilt("its pictures are prepared by torchvision alone" if names else "it has no picture processor")
    found: type = getattr(transformers, names["pil"])
    return found


def _processor(name: str, made: type, words: Any) -> Any:
    pictures = picture_class(name)(**{**_sizes(picture_class(name)), **overrides.PICTURES.get(name, {})})
    accepted = inspect.signature(made.__init__).parameters
    more: dict[str, Any] = {
        "patch_size": PATCH,
        "num_image_tokens": (TILE // PATCH) ** 2,
        "image_seq_length": (TILE // PATCH) ** 2,
        "image_seq_len": (TILE // PATCH) ** 2,
        "num_query_tokens": 4,
        "vision_feature_select_strategy": "full",
        "qformer_tokenizer": words,
    }
    given = {key: value for key, value in more.items() if key in accepted} | dict(overrides.PROCESSOR.get(name, {}))
    parts = {"image_processor": pictures, "tokenizer": words, **given}
    return without_videos(made, **parts) if needs_stand_ins(made) else made(**parts)


def _sizes(made: type) -> dict[str, Any]:
    """Pictures of a few patches, in the form that the class has its sizes in."""
    found: dict[str, Any] = {}
    size = getattr(made, "size", None) or {}
    if {"height", "width"} <= set(size):
        found["size"] = {"height": TILE, "width": TILE}
    elif "longest_edge" in size and "shortest_edge" in size:
        found["size"] = {"shortest_edge": TILE * TILE, "longest_edge": 16 * TILE * TILE}
    elif "shortest_edge" in size:
        found["size"] = {"shortest_edge": TILE}
    elif "longest_edge" in size:
        found["size"] = {"longest_edge": TILE}
    if getattr(made, "crop_size", None):
        found["crop_size"] = {"height": TILE, "width": TILE}
    if isinstance(getattr(made, "patch_size", None), int):
        found["patch_size"] = PATCH
    elif isinstance(getattr(made, "patch_size", None), Mapping):
        found["patch_size"] = {"height": PATCH, "width": PATCH}
    return found


def config_class(name: str) -> Any:
    """The class of a type's configuration."""
    return CONFIG_MAPPING[name]


def configuration(name: str, words: Any, processor: Any) -> Any:
    """The small configuration, whose token ids are the tokenizer's."""
    kind = config_class(name)
    given = overrides.CONFIG.get(name, {})
    start = kind(**overrides.START.get(name, {}))
    small = shrunk(start.to_dict(), len(words), given)
    if "vocabulary_map" in small:
        small["vocabulary_map"] = words.get_vocab()
    image = getattr(processor, "image_token_id", None) or words.convert_tokens_to_ids(
        getattr(processor, "image_token", None) or "<image>"
    )
    if name in overrides.FEATURE:
        image = words.convert_tokens_to_ids(overrides.FEATURE[name])
    return kind(**_with_tokens(small, words, processor, image, set(given)))


def _with_tokens(settings: dict[str, Any], words: Any, processor: Any, image: int, given: set[str]) -> dict[str, Any]:
    """Token ids: the tokenizer's of that name, or that of a special token of its own."""
    known = {"pad": words.pad_token_id, "bos": words.bos_token_id, "eos": words.eos_token_id, "image": image}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        stem = re.sub(r"_token_(id|index)$", "", str(name))
        if isinstance(value, dict):
            found[name] = _with_tokens(value, words, processor, image, given)
        elif stem == name or name in given:
            found[name] = value
        elif stem in known:
            found[name] = known[stem]
        elif value is not None:
            token = getattr(processor, f"{stem}_token", None) or getattr(words, f"{stem}_token", None)
            found[name] = words.convert_tokens_to_ids(token if isinstance(token, str) else "<unk>")
        else:
            found[name] = value
    return found
