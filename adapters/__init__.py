"""The methods and the artifact: mathematics and data, no model and no ONNX."""

from . import vlm_guard as vlm_guard  # importing a method registers its ops
from .adapter import Adapter, Intervention
from .errors import InvalidArtifact, ParityFailed, SafetykitError, UnsupportedGraph, UsageError, WrongBase
from .fingerprint import fingerprint
from .ops import Op, Phase, Scope, ScopeMask, get_op
from .sites import Site
from .store import load_adapter, read_manifest, require_base, save_adapter
from .vlm_guard import VLMGuard

__all__ = [
    "Adapter",
    "Intervention",
    "InvalidArtifact",
    "Op",
    "ParityFailed",
    "Phase",
    "SafetykitError",
    "Scope",
    "ScopeMask",
    "Site",
    "UnsupportedGraph",
    "UsageError",
    "VLMGuard",
    "WrongBase",
    "fingerprint",
    "get_op",
    "load_adapter",
    "read_manifest",
    "require_base",
    "save_adapter",
]
