"""Writing parameters as ONNX Runtime's adapter file, bound to a base and a signature; needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.artifact.files import appearing
from ...adapters.artifact.manifest import canonical_json
from ..manifest import ExportManifest, InterventionInfo

if TYPE_CHECKING:
    from ...adapters.artifact.intervention import Intervention

_BITS = 0x7FFFFFFF


def signature(manifest: ExportManifest) -> Any:
    """What adapters must have in common to be swapped, JSON-able."""
    branch = manifest.branch
    return {
        "interventions": [described(one) for one in manifest.interventions],
        "updates": sorted(one.source for one in manifest.parameters if one.source.startswith("update.")),
        "branch": [branch.op, branch.safety, branch.fused] if branch else None,
        "detector": manifest.detector is not None,
        "enforce": manifest.enforce,
    }


def described(one: InterventionInfo | Intervention) -> list[Any]:
    """What two interventions must have in common for one's parameters to take the place of the other's."""
    found = [one.op, str(one.site), one.scope, one.phase, one.gate]
    return [*found, list(map(str, one.reads))] if one.reads else found


def write_adapter_file(path: Path, arrays: Mapping[str, np.ndarray], manifest: ExportManifest) -> None:
    """Write parameters of one graph in ONNX Runtime's format, bound to the base and the signature of ``manifest``."""
    import onnxruntime

    made = onnxruntime.AdapterFormat()
    made.set_model_version(base_version(manifest))
    made.set_adapter_version(signature_version(manifest))
    made.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for name, value in arrays.items()}
    )
    with appearing(path) as partial:
        made.export_adapter(str(partial))


def base_version(manifest: ExportManifest) -> int:
    return int(manifest.base.fingerprint[:8], 16) & _BITS


def signature_version(manifest: ExportManifest) -> int:
    return int(hashlib.sha256(canonical_json(signature(manifest))).hexdigest()[:8], 16) & _BITS
