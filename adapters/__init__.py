"""The methods and the artifact: mathematics and data, no model and no ONNX.

Names are loaded on first use: manifests, files and errors need no torch, and a runtime without it can use them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Adapter": ".adapter",
    "Intervention": ".adapter",
    "AffineMap": ".affine",
    "CARE": ".care",
    "InvalidArtifact": ".errors",
    "ParityFailed": ".errors",
    "SafetykitError": ".errors",
    "UnsupportedGraph": ".errors",
    "UsageError": ".errors",
    "WrongBase": ".errors",
    "Op": ".ops",
    "ScopeMask": ".ops",
    "get_op": ".ops",
    "Phase": ".sites",
    "Scope": ".sites",
    "Site": ".sites",
    "load_adapter": ".store",
    "read_manifest": ".store",
    "require_base": ".store",
    "save_adapter": ".store",
    "SASA": ".sasa",
    "OnePassProbe": ".one_pass",
    "TGA": ".tga",
    "VLMGuard": ".vlm_guard",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
