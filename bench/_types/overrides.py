"""What names do not tell about a type's configuration or processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shrinking import PATCH, TILE

_SIDE = TILE // PATCH
_SQUARE = {"height": TILE, "width": TILE}

# By dotted name from the configuration.
CONFIG: Mapping[str, Mapping[str, Any]] = {}

# Arguments of the processor's class.
PROCESSOR: Mapping[str, Mapping[str, Any]] = {}

# Arguments of the picture processor's class.
PICTURES: Mapping[str, Mapping[str, Any]] = {}

# What stands for a picture in the chat template, where it is not the processor's image token.
PICTURE: Mapping[str, str] = {}

# Classes of processors that transformers does not name for the type.
CLASS: Mapping[str, str] = {}

# Types whose picture processor it has.
PICTURES_OF: Mapping[str, str] = {}

# Arguments of a configuration that has no usable default.
START: Mapping[str, Mapping[str, Any]] = {}
