"""safetykit: safety adapters for vision-language models, baked into ONNX graphs.

Names are loaded on first use, so that importing the package (and `safetykit --help`) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    # models, requests, records
    "VLM": ".toolkit.model.vlm",
    "OnnxVLM": ".export.runtime.onnx_vlm",
    "Request": ".toolkit.model.requests",
    "Generation": ".toolkit.model.requests",
    "Record": ".toolkit.data.records",
    "load_records": ".toolkit.data.records",
    "reference_path": ".toolkit.reference",
    "records_path": ".toolkit.reference",
    # methods and adapters
    "VLMGuard": ".adapters",
    "CARE": ".adapters",
    "SASA": ".adapters",
    "OnePassProbe": ".adapters",
    "StreamingGuard": ".adapters",
    "TGA": ".adapters",
    "Adapter": ".adapters",
    "Intervention": ".adapters",
    "Site": ".adapters",
    "load_adapter": ".adapters",
    "save_adapter": ".adapters",
    "trusting": ".adapters.artifact.policy",
    # what is done with them
    "diagnose": ".toolkit.diagnosis",
    "ChannelMap": ".toolkit.diagnosis",
    "evaluate": ".toolkit.evaluation.evaluate",
    "Evaluation": ".toolkit.evaluation.evaluate",
    "export_onnx": ".export.pipeline.export",
    "ExportOptions": ".export.pipeline.options",
    "GraphBase": ".export.parity.graph_base",
    "check_parity": ".export.parity.check",
    "ParityReport": ".export.parity.report",
    # errors
    "SafetykitError": ".adapters.errors",
    "UsageError": ".adapters.errors",
    "InvalidArtifact": ".adapters.errors",
    "UnsupportedGraph": ".adapters.errors",
    "WrongBase": ".adapters.errors",
    "ParityFailed": ".adapters.errors",
    "SignatureFailed": ".adapters.errors",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(import_module(_HOME[name], __name__), name)
        except ModuleNotFoundError as error:
            from .adapters.extras import explained

            raise explained(error) from None
    from .adapters.near import did_you_mean

    hint = did_you_mean(name, list(_HOME)) or f"It has {', '.join(__all__)}."
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. {hint}" if name[0] != "_" else name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
