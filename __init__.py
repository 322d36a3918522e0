"""safetykit: safety adapters for vision-language models, baked into ONNX graphs.

Names are loaded on first use, so that importing the package (and `safetykit --help`) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Adapter": ".adapters",
    "Intervention": ".adapters",
    "Site": ".adapters",
    "VLMGuard": ".adapters",
    "CARE": ".adapters",
    "SASA": ".adapters",
    "TGA": ".adapters",
    "load_adapter": ".adapters",
    "SafetykitError": ".adapters.errors",
    "VLM": ".toolkit.model.vlm",
    "ChannelMap": ".toolkit.diagnosis",
    "diagnose": ".toolkit.diagnosis",
    "Record": ".toolkit.data.records",
    "load_records": ".toolkit.data.records",
    "evaluate": ".toolkit.evaluation.evaluate",
    "export_onnx": ".export.pipeline.pipeline",
    "OnnxVLM": ".export.runtime.onnx_vlm",
    "check_parity": ".export.parity.check",
    "reference_path": ".toolkit.reference",
    "records_path": ".toolkit.reference",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
