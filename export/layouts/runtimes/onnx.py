"""The plain layout: three graphs with their data, as parity has seen them."""

from __future__ import annotations

from ..layout import RuntimeLayout
from ..registry import register


@register
class Onnx(RuntimeLayout):
    """What ``OnnxVLM`` opens, and what the other layouts are made from."""

    name, title = "onnx", "ONNX Runtime, driven by safetykit"
    plain_graphs = True
