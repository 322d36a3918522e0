"""EXAONE 4.5: ``Exaone4_5_ForConditionalGeneration``.

Parts and weight prefixes:
    ``model.visual``            Qwen2.5-VL's tower with grouped keys and values
    ``model.visual.merger``     the projector
    ``model.language_model``    EXAONE 4: most layers see a window, and only those turn positions
    ``lm_head``
"""

from __future__ import annotations

from .packed import Counted, PackedWindows
from .registry import register


@register
class Exaone45(Counted, PackedWindows):
    """Windows in tower and decoder."""

    name, title = "exaone4_5", "EXAONE 4.5"
