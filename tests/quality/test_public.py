"""The public surface: names come and go here on purpose, and each of them is there."""

import importlib

import pytest

PUBLIC = {
    "safetykit": [
        "Adapter",
        "CARE",
        "ChannelMap",
        "Evaluation",
        "ExportOptions",
        "Generation",
        "GraphBase",
        "Intervention",
        "InvalidArtifact",
        "OnePassProbe",
        "OnnxVLM",
        "ParityFailed",
        "ParityReport",
        "Record",
        "Request",
        "SASA",
        "SafetykitError",
        "SignatureFailed",
        "Site",
        "StreamingGuard",
        "TGA",
        "UnsupportedGraph",
        "UsageError",
        "VLM",
        "VLMGuard",
        "WrongBase",
        "check_parity",
        "diagnose",
        "evaluate",
        "export_onnx",
        "load_adapter",
        "load_records",
        "records_path",
        "reference_path",
        "save_adapter",
        "trusting",
    ],
    "safetykit.adapters": [
        "Adapter",
        "AffineMap",
        "CARE",
        "Corrector",
        "Detector",
        "Intervention",
        "InvalidArtifact",
        "Method",
        "Observer",
        "OnePassProbe",
        "Op",
        "ParityFailed",
        "Phase",
        "SASA",
        "SafetykitError",
        "Scope",
        "ScopeMask",
        "Section",
        "Settings",
        "SignatureFailed",
        "Site",
        "StreamingGuard",
        "TGA",
        "UnsupportedGraph",
        "UsageError",
        "VLMGuard",
        "WrongBase",
        "get_method",
        "get_op",
        "load_adapter",
        "read_manifest",
        "register",
        "require_base",
        "save_adapter",
    ],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_names_are_these(package):
    assert sorted(importlib.import_module(package).__all__) == PUBLIC[package]


@pytest.mark.parametrize("package", PUBLIC)
def test_every_name_can_be_imported(package):
    module = importlib.import_module(package)
    for name in PUBLIC[package]:
        assert getattr(module, name) is not None
        assert name in dir(module)
