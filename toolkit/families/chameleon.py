"""Chameleon: ``ChameleonForConditionalGeneration``, which is not exported."""

from __future__ import annotations

from .family import Family
from .registry import register


@register
class Chameleon(Family):
    """Runs in PyTorch."""

    name, title = "chameleon", "Chameleon"
    obstacle = (
        "it sets logits of picture tokens to the lowest number there is, against which no error could be measured"
    )
