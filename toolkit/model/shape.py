"""A decoder's depth and width, from a checkpoint's configuration: no weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Shape(NamedTuple):
    """Decoder blocks, and the width of the states between them."""

    n_layers: int
    d_model: int


def decoder_shape(folder: Path) -> Shape | None:
    """The shape that ``config.json`` tells; None where it cannot be read, which loading explains."""
    from .pretrained import config_of

    try:
        text = config_of(folder).get_text_config()
        return Shape(int(text.num_hidden_layers), int(text.hidden_size))
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError):
        return None
