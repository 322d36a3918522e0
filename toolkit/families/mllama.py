"""Llama 3.2 Vision: ``MllamaForConditionalGeneration``, which is not exported."""

from __future__ import annotations

from .family import Family
from .registry import register


@register
class Mllama(Family):
    """Runs in PyTorch; the reason is what an attempt to export it says."""

    name, title = "mllama", "Llama 3.2 Vision"
    obstacle = "its decoder attends across to the picture instead of reading image tokens"
