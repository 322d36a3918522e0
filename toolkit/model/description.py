"""What `safetykit inspect` shows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from .parts import Parts
from .quantised import parameter_count, quantisation_of


class Described(Protocol):
    """A VLM, whose weights need not be loaded (``toolkit.VLM``)."""

    model: Any
    parts: Parts

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def stored_dtype(self) -> str: ...


def describe(vlm: Described, *, fingerprint: bool = True) -> dict[str, Any]:
    """Parts, sites, shape and fingerprint, JSON-able.

    Args:
        fingerprint: compute it, which reads every weight; None stands in its place otherwise.
    """
    parts = {
        "vision tower": vlm.parts.tower,
        "projector": vlm.parts.projector,
        "decoder layer": vlm.parts.layers[0],
        "final norm": vlm.parts.final_norm,
        "LM head": vlm.parts.head,
    }
    return {
        "path": str(vlm.path),
        "fingerprint": vlm.fingerprint if fingerprint else None,
        "architecture": type(vlm.model).__name__,
        "n_layers": len(vlm.parts.layers),
        "d_model": vlm.parts.embed_tokens.weight.shape[1],
        "parameters": parameter_count(vlm.model, vlm.path),
        "dtype": vlm.stored_dtype,
        "quantised": str(quantisation_of(vlm.model.config) or "") or None,
        "vocabulary": vlm.parts.head.weight.shape[0],
        "parts": {name: type(part).__name__ if part is not None else None for name, part in parts.items()},
        "sites": [str(site) for site in vlm.parts.sites()],
        "model_organism": bool(getattr(vlm.model.config, "safetykit_model_organism", False)),
    }
