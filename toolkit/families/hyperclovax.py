"""HyperCLOVA X Vision 2: ``HyperCLOVAXVisionV2ForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_model``      Qwen2.5-VL's tower with its merger
    ``model.projector``         one linear layer
    ``model.language_model``    HyperCLOVA X
    ``lm_head``
"""

from __future__ import annotations

from .packed import Counted, PackedWindows
from .registry import register


@register
class HyperClovaX(Counted, PackedWindows):
    """A projector behind the tower's own."""

    name, title = "hyperclovax_vision_v2", "HyperCLOVA X Vision"
    tower, projector, projector_inside = "model.vision_model", "model.projector", False
