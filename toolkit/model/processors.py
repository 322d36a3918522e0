"""Loading a checkpoint's processor for pictures and text, without what it would need for videos and sounds."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from ...adapters.errors import InvalidArtifact, UsageError
from .pretrained import OFFLINE

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_TORCHVISION = "torchvision"
_UNUSED = ("video_processor", "feature_extractor")  # of videos and of sounds
_SIZES, _COUNTS = ("size", "crop_size"), ("num_", "image_seq")  # settings of processors
_MOST_PIXELS, _MOST_TOKENS = 2**14, 2**16  # along an edge, and of one picture


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a folder of :func:`.pretrained.readable_copy`, its pictures by Pillow; nothing is downloaded.

    Video processors need torchvision, which brings its own build of torch: a processor that has one is built without,
    as is one for sounds, and one that transformers hides where torchvision is missing.

    Raises:
        UsageError: it needs torchvision, which is missing or made for another torch.
        OSError, ValueError, ImportError, KeyError, TypeError: as transformers does where a file is missing or wrong.
    """
    try:
        return _load(folder, config)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if _TORCHVISION not in str(error).casefold():
            raise
        raise UsageError(
            f"The processor of this model ({config.model_type}) needs torchvision, which is missing here or made for "
            "another torch.",
            "pip install 'safetykit[torchvision]'; beside a torch for CPUs take PyTorch's own build for CPUs.",
        ) from None


def _load(folder: Path, config: Any) -> Any:
    from transformers import AutoProcessor

    options = {**OFFLINE, "backend": "pil"}
    made = _class_of(folder, config)
    if made is None or not (needs_stand_ins(made) or is_hidden(made)):
        return AutoProcessor.from_pretrained(folder, **options)
    return _load_without_videos(made, folder, options)


def _class_of(folder: Path, config: Any) -> type | None:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for name in _NAMED_IN:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("processor_class")
            if found and hasattr(transformers, found):
                return processor_class(found)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return processor_class(name) if name else None


def processor_class(name: str) -> type | None:
    """The class of that name, also where transformers shows another that only asks for torchvision."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    found: type | None = getattr(transformers, name, None)
    if found is None or issubclass(found, transformers.ProcessorMixin):
        return found
    for kind in (kind for kind, called in PROCESSOR_MAPPING_NAMES.items() if called == name):
        module = f"transformers.models.{kind}.processing_{kind}"
        if importlib.util.find_spec(module) is not None:
            return getattr(importlib.import_module(module), name, None)
    return None


def is_hidden(made: type) -> bool:
    """Whether transformers shows another class of its name, that only asks for a package."""
    import transformers

    return getattr(transformers, made.__name__, made) is not made


def needs_stand_ins(made: type) -> bool:
    """Whether a processor's class has parts for videos or sounds."""
    return bool(set(_UNUSED) & set(made.get_attributes()))


class _Absent:
    """In the place of a part that is not used, whose settings are read as a processor is made or a prompt rendered."""

    model_input_names: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def without_videos(made: type, **parts: Any) -> Any:
    """A processor of class ``made`` with nothing for videos and sounds; ``parts`` are its other arguments."""
    everything = made.get_attributes()
    kept = [name for name in everything if name not in _UNUSED]
    accepted = inspect.signature(made.__init__).parameters
    absent = _Absent()

    class PicturesAndText(made):
        shown = everything
        video_processor = feature_extractor = absent

        @classmethod
        def get_attributes(cls) -> list[str]:
            return cls.shown

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return (
                None if argument_name in _UNUSED else super().check_argument_for_proper_class(argument_name, argument)
            )

    PicturesAndText.__name__ = made.__name__  # is noted in saved files
    module = inspect.getmodule(made)
    # SmolVLM asks for a package that spells out the number of frames of a video.
    with mock.patch.object(module, "num2words", getattr(module, "num2words", None) or str, create=True):
        processor = PicturesAndText(**parts, **{name: absent for name in _UNUSED if name in accepted})
    PicturesAndText.shown = kept
    for name in _UNUSED:
        vars(processor).pop(name, None)  # what an object has of its own is saved
    return processor


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


def image_token_of(processor: Any, config: Any) -> int:
    """The token that stands for each feature of a picture, as configuration, processor or tokenizer call it.

    Raises:
        UsageError: there is none.
    """
    named = [getattr(config, name, None) for name in ("image_token_id", "image_token_index", "img_context_token_id")]
    named += [getattr(owner, "image_token_id", None) for owner in (processor, processor.tokenizer)]
    for one in named:
        if isinstance(one, int) and one >= 0:
            return one
    raise UsageError(
        f"The model ({config.model_type}) has no image token: its pictures stand beside the prompt.",
        "safetykit works on vision-language models whose pictures become tokens of the decoder.",
    )


def prepares_otherwise(pictures: Any) -> bool:
    """Whether pictures are prepared by torchvision although the same class is there for Pillow, which exports use."""
    import transformers

    made = type(pictures)
    by_torchvision = any(base.__name__ == "TorchvisionBackend" for base in made.__mro__)
    return by_torchvision and hasattr(transformers, f"{made.__name__}Pil")


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
