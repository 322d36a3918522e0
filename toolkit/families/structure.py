"""Where a model's tower and projector are: by what they are called, unless the family says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .family import Family

if TYPE_CHECKING:
    from torch import nn

_TOWERS = (
    "vision_tower",
    "vision_model",
    "visual",
    "vision_encoder",
    "image_tower",
    "image_encoder",
    "vqmodel",
    "vision_embed_tokens",
)
_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "projector",
    "mm_projector",
    "embed_vision",
    "aligner",
    "vision_projection",
    "visual_projection",
    "language_projection",
    "image_to_text_projection",
    "merger",
)
_OWNERS = ("model", "git", "vlm")  # how models call the one below their head


def tower_of(model: Any, family: Family) -> nn.Module | None:
    """The module that sees pictures; None if there is none of its own."""
    found: nn.Module | None = model.get_submodule(family.tower) if family.tower else _child(model, _TOWERS)
    return found


def projector_of(model: Any, family: Family) -> nn.Module | None:
    """The module between tower and decoder; None for towers that end in the decoder's width themselves."""
    if family.projector is None:
        return None
    found: nn.Module | None = model.get_submodule(family.projector) if family.projector else _child(model, _PROJECTORS)
    return found


def sees(model: Any) -> Any | None:
    """The one of a model and those below its head that gives image features; None if none does."""
    owners = (model, *(getattr(model, owner, None) for owner in _OWNERS))
    return next((owner for owner in owners if hasattr(owner, "get_image_features")), None)


def _child(module: Any, names: Sequence[str]) -> nn.Module | None:
    """The child with one of these names: of ``module`` itself or of its base model."""
    from torch import nn

    for place in (module, *(getattr(module, owner, None) for owner in _OWNERS)):
        for name in names:
            if isinstance(child := getattr(place, name, None), nn.Module):
                return child
    return None
