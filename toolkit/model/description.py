"""What `safetykit inspect` shows of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .vlm import VLM


def describe(vlm: VLM) -> dict[str, Any]:
    """Parts, sites, shape and fingerprint, JSON-able."""
    parts = {
        "vision tower": vlm.parts.tower,
        "projector": vlm.parts.projector,
        "decoder layer": vlm.parts.layers[0],
        "final norm": vlm.parts.final_norm,
        "LM head": vlm.parts.head,
    }
    return {
        "path": str(vlm.path),
        **vlm.base.model_dump(),
        "parameters": sum(parameter.numel() for parameter in vlm.model.parameters()),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "vocabulary": vlm.parts.head.weight.shape[0],
        "parts": {name: type(part).__name__ if part is not None else None for name, part in parts.items()},
        "sites": [str(site) for site in vlm.parts.sites()],
        "model_organism": bool(getattr(vlm.model.config, "safetykit_model_organism", False)),
    }
