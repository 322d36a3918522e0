"""The methods and the artifact: mathematics and data, no model and no ONNX.

Names are loaded on first use: manifests, files and errors need no torch, and a runtime without it can use them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Adapter": ".artifact.adapter",
    "Intervention": ".artifact.intervention",
    "AffineMap": ".ops.affine",
    "Corrector": ".ops.op",
    "Detector": ".ops.op",
    "Observer": ".ops.op",
    "Section": ".section",
    "CARE": ".care.settings",
    "InvalidArtifact": ".errors",
    "ParityFailed": ".errors",
    "SafetykitError": ".errors",
    "SignatureFailed": ".errors",
    "UnsupportedGraph": ".errors",
    "UsageError": ".errors",
    "WrongBase": ".errors",
    "Method": ".method",
    "Settings": ".settings",
    "get_method": ".registry",
    "register": ".registry",
    "Op": ".ops.op",
    "ScopeMask": ".ops.op",
    "get_op": ".ops.op",
    "Phase": ".artifact.sites",
    "Scope": ".artifact.sites",
    "Site": ".artifact.sites",
    "load_adapter": ".artifact.store",
    "read_manifest": ".artifact.store",
    "require_base": ".artifact.store",
    "save_adapter": ".artifact.store",
    "SASA": ".sasa.settings",
    "OnePassProbe": ".one_pass.settings",
    "StreamingGuard": ".streaming_guard.settings",
    "TGA": ".tga.settings",
    "VLMGuard": ".vlm_guard.settings",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
