"""How a checkpoint's processor prepares requests, in the words of ``io.json``, and whether ``run_ort.py`` does so too.

The words are few: a template of text, one size of pictures, the same number of tokens for each. Whether they say what
the processor does is tried on :data:`PROBES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ...adapters.errors import UsageError
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import Request
from ..names import PIXEL_VALUES
from .interface import Interface, PictureIO, PictureTextIO, PromptIO

PROGRAM = "run_ort.py"
SOURCE = Path(__file__).with_name(PROGRAM)
_TOKENIZER, _WORDS, _TAGS = "tokenizer.json", 24, 200  # tokens of the vocabulary, and letters of tags, in probes
# Words and shapes on which the program has to prepare what the processor prepares.
PROBES: tuple[tuple[str, tuple[int, int] | None], ...] = (
    ("What is this?", None),
    ("  two  spaces, é and 漢字 \n", None),
    ("What is this?", (64, 48)),
    ("Describe it.", (31, 90)),
    (" and now ", (700, 333)),
    ("?", (640, 640)),
)


class _Unsaid(Exception):
    """What ``io.json`` has no words for."""


def prepared(inputs: InputProcessor) -> tuple[PromptIO | None, PictureIO | None, str | None]:
    """How the checkpoint's processor prepares a prompt and a picture, and what of it cannot be said in these words."""
    try:
        prompt, picture = _prompt(inputs), _picture(inputs.processor.image_processor)
    except (UsageError, _Unsaid) as error:
        return None, None, str(error).splitlines()[0].rstrip(".")
    return prompt, picture, None


def _prompt(inputs: InputProcessor) -> PromptIO:
    word, shown = "QXZ", Image.new("RGB", (64, 64))
    texts = [inputs.render(Request(f" {word} ", image)) for image in (None, shown)]
    placeholder, opening, token, closing = inputs.family.picture_text(inputs.processor)
    if any(text.count(word) != 1 for text in texts) or texts[1].count(placeholder) != 1:
        raise _Unsaid("its chat template does not say prompt and picture once")
    strip = not all(f" {word} " in text for text in texts)
    said = word if strip else f" {word} "
    count = int(inputs.prepare([Request(word, shown)]).vision_mask.sum())
    plain = [text.replace(said, "{prompt}") for text in texts]
    begins = inputs.tokens_of(plain[0]) != tuple(inputs.prepare([Request("{prompt}")]).input_ids[0].tolist())
    return PromptIO(
        text=plain[0],
        with_picture=plain[1].replace(placeholder, "{picture}"),
        picture=PictureTextIO(opening=opening, token=token, count=count, closing=closing),
        strip=strip,
        special_tokens=begins,
        most_tokens=inputs.most_tokens,
    )


def _picture(processor: Any) -> PictureIO:
    try:
        return _picture_of(processor.to_dict())
    except (LookupError, TypeError, ValueError, OverflowError) as error:  # transformers compares no types
        raise _Unsaid(f"its picture settings have no words here ({str(error).splitlines()[0]})") from None


def _picture_of(how: Mapping[str, Any]) -> PictureIO:
    size = {name: value for name, value in (how.get("size") or {}).items() if value}
    crop = how["crop_size"] if how.get("do_center_crop") else None
    if how["do_resize"] and size.keys() not in ({"shortest_edge"}, {"height", "width"}):
        raise _Unsaid(f"pictures are resized by {', '.join(sorted(size))}")
    plain = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    mean, std = (tuple(map(float, (how if how["do_normalize"] else plain)[name])) for name in plain)
    return PictureIO(
        shortest_edge=size.get("shortest_edge") if how["do_resize"] else None,
        size=(size["width"], size["height"]) if how["do_resize"] and "width" in size else None,
        resample=int(how["resample"]),
        crop=(crop["width"], crop["height"]) if crop else None,
        scale=float(how["rescale_factor"]) if how["do_rescale"] else 1.0,
        mean=mean,
        std=std,
    )


def program() -> ModuleType:
    """``run_ort.py`` as a module."""
    spec = importlib.util.spec_from_file_location("run_ort", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(folder: Path, found: Interface, inputs: InputProcessor) -> str | None:
    """The first request of :data:`PROBES` that the program prepares in another way than the processor, in words."""
    if not (folder / _TOKENIZER).is_file():
        return f"there is no {_TOKENIZER}"
    ours = program().Requests(folder, found.model_dump(mode="json"))
    words = inputs.decode(range(0, len(inputs.tokenizer), max(1, len(inputs.tokenizer) // _WORDS)))
    tokens = " and ".join(inputs.plain_text.special)  # which the program, too, must read as text
    for text, size in (*PROBES, (words, None), (f"{tokens[:_TAGS]} what", None)):
        image = None
        if size is not None:
            noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8)
            image = Image.fromarray(noise)
        try:
            theirs = inputs.prepare([Request(text, image)])
        except UsageError:  # too long for a small model, with this picture
            continue
        what = f"{text!r}{f' with a picture of {size[0]}x{size[1]}' if size else ''}"
        if not np.array_equal(ours.tokens(text, size is not None), theirs.input_ids):
            return f"it makes other tokens of {what} than the checkpoint's processor"
        if image is not None and not _same(theirs.pictures, ours.pixels(image)):
            return f"it makes other pixels of {what} than the checkpoint's processor"
        if not _same_feeds(inputs, theirs, ours):
            return f"it feeds the decoder other positions for {what} than safetykit"
        if ours.text(theirs.input_ids[0].tolist()) != inputs.decode(theirs.input_ids[0].tolist()):
            return f"it reads the tokens of {what} in other words than the checkpoint's tokenizer"
    return None


def _same(pictures: Mapping[str, np.ndarray], pixels: np.ndarray) -> bool:
    theirs = pictures.get(PIXEL_VALUES)
    return theirs is not None and theirs.shape == pixels.shape and np.allclose(theirs, pixels, rtol=0, atol=1e-6)


def _same_feeds(inputs: InputProcessor, theirs: Any, ours: Any) -> bool:
    """Positions and the like, of a prompt and of the token after it."""
    family, config = inputs.family, inputs.config
    before = family.prefill(config, theirs)
    after = family.step(config, before, np.ones((1, theirs.input_ids.shape[1] + 1), np.int64))
    ids = theirs.input_ids
    ids = theirs.input_ids
    answered = np.full((1, 1), -1)  # the token that is generated is none of a picture
    for wanted, made in ((before, ours.feeds(ids, 0)), (after, ours.feeds(answered, ids.shape[1]))):
        if any(name in made and not np.array_equal(made[name], value) for name, value in wanted.items()):
            return False
    return True
