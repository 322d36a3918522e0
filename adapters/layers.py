"""Settings that name decoder blocks: how they are written, and whether a model has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .errors import UsageError
from .settings import Settings, spell

_ADVICE = "Write for example 3-5 or 2,4; layers count from 0 at the first block."


class _Block:
    """Marks a number as a decoder block's."""


def parse_layers(given: Any) -> Any:
    """``"3-5"``, ``"2,4,6-7"`` or one number as layers; anything that is no text stays as it is.

    Raises:
        PydanticCustomError: a text that names no layers.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        return (given,)
    if not isinstance(given, str):
        return tuple(given) if isinstance(given, range) else given
    layers: set[int] = set()
    for part in given.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise PydanticCustomError("layers", "names no layers", {"advice": _ADVICE})
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


Layer = Annotated[int, Field(ge=0), _Block()]  # a decoder block, from 0
Layers = Annotated[tuple[Layer, ...], BeforeValidator(parse_layers), Field(min_length=1)]


def require_depth(settings: Settings, n_layers: int) -> None:
    """Refuse settings that name a block which a decoder of ``n_layers`` blocks does not have.

    Raises:
        UsageError: naming the setting and the block.
    """
    for name, layers in _named(settings):
        if layers and max(layers) >= n_layers:
            raise UsageError(
                f"{spell(type(settings), name)} names layer {max(layers)}: the decoder has {n_layers} layers.",
                f"Layers count from 0, so the last one is {n_layers - 1}.",
            )


def require_text_model(text: tuple[int, int], own: tuple[int, int]) -> None:
    """Refuse a text model whose states are not those of the VLM's decoder.

    Args:
        text, own: layers and width, of the text model and of the VLM.

    Raises:
        UsageError: they differ.
    """
    if text != own:
        raise UsageError(
            f"The text model has {text[0]} layers of width {text[1]}, the VLM {own[0]} of {own[1]}.",
            "Use the language model the VLM was built from.",
        )


def _named(settings: Settings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every setting whose values are decoder blocks, with those that it names."""
    for name, field in type(settings).model_fields.items():
        if _of_blocks(field.annotation) or any(isinstance(item, _Block) for item in field.metadata):
            value = getattr(settings, name)
            yield name, value if isinstance(value, tuple) else () if value is None else (value,)


def _of_blocks(kind: Any) -> bool:
    if get_origin(kind) is Annotated and any(isinstance(item, _Block) for item in get_args(kind)[1:]):
        return True
    return any(_of_blocks(inner) for inner in get_args(kind))
