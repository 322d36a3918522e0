"""Loading a checkpoint's processor for pictures and text, without what it would need for videos, and within limits."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ...adapters.errors import InvalidArtifact
from .pretrained import OFFLINE

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_FOR_VIDEOS = "video_processor"
_SIZES, _COUNTS = ("size", "crop_size"), ("num_", "image_seq")  # settings of processors
_MOST_PIXELS, _MOST_TOKENS = 2**14, 2**16  # along an edge, and of one picture


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a folder of :func:`.pretrained.readable_copy`, its pictures by Pillow; nothing is downloaded.

    Video processors need torchvision, which brings its own build of torch: a processor that has one is built without.

    Raises:
        OSError, ValueError, ImportError, KeyError, TypeError: as transformers does where a file is missing or wrong.
    """
    from transformers import AutoProcessor

    options = {**OFFLINE, "backend": "pil"}
    made = _class_of(folder, config)
    if made is None or _FOR_VIDEOS not in made.get_attributes():
        return AutoProcessor.from_pretrained(folder, **options)
    return _load_without_videos(made, folder, options)


def _class_of(folder: Path, config: Any) -> type | None:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for name in _NAMED_IN:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("processor_class")
            if found and hasattr(transformers, found):
                return getattr(transformers, found)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return getattr(transformers, name, None) if name else None


def without_videos(made: type, **parts: Any) -> Any:
    """A processor of class ``made`` that has no video processor; ``parts`` are its other arguments."""
    kept = [name for name in made.get_attributes() if name != _FOR_VIDEOS]

    class PicturesAndText(made):
        # Read, but not used, where a chat template is rendered.
        video_processor = SimpleNamespace(num_frames=None, fps=None, model_input_names=[])

        @classmethod
        def get_attributes(cls) -> list[str]:
            return kept

    PicturesAndText.__name__ = made.__name__  # is noted in saved files
    module = inspect.getmodule(made)
    # SmolVLM asks for a package that spells out the number of frames of a video.
    with mock.patch.object(module, "num2words", getattr(module, "num2words", None) or str, create=True):
        return PicturesAndText(**parts, **{_FOR_VIDEOS: None})


def _load_without_videos(made: type, folder: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    settings, _ = made.get_processor_dict(folder, **options)
    accepted = inspect.signature(made.__init__).parameters
    more = {name: value for name, value in settings.items() if name in accepted and name not in made.get_attributes()}
    return without_videos(
        made,
        image_processor=AutoImageProcessor.from_pretrained(folder, **options),
        tokenizer=AutoTokenizer.from_pretrained(folder, **OFFLINE),
        **more,
    )


def require_sizes(processor: Any) -> None:
    """Refuse a processor that would make a picture of gigabytes, or as many tokens.

    Raises:
        InvalidArtifact: naming the setting.
    """
    pictures = processor.image_processor
    found = {f"{name} {key}": one for name in _SIZES for key, one in _items(getattr(pictures, name, None))}
    counts = {name: one for name, one in vars(processor).items() if name.startswith(_COUNTS)}
    limits = {**dict.fromkeys(found, _MOST_PIXELS), **dict.fromkeys(counts, _MOST_TOKENS)}
    for name, value in {**found, **counts}.items():
        if isinstance(value, (int, float)) and not -1 <= value <= limits[name]:
            raise InvalidArtifact(
                f"The model's processor has {name} {value:.6g}, which no model reads.",
                "Get the checkpoint or export again from its source.",
            )


def _items(size: Any) -> list[tuple[str, Any]]:
    """Edges in pixels; an area stands beside a shortest edge as ``longest_edge``."""
    edges = dict(size) if isinstance(size, Mapping) else {}
    return [(key, edges[key]) for key in ("height", "width", "shortest_edge") if edges.get(key) is not None]
