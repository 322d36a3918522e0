"""Fixtures of the tiny LLaVA and its base export, and Triton's schema of model repositories."""

import importlib.util
from pathlib import Path

import pytest
from tiny_llava import make_adapter, make_detector, make_probe, requests, split_risks, vlm  # noqa: F401


@pytest.fixture(scope="session")
def triton_schema():
    """Triton's published messages; loaded by path, because the package around them wants gRPC."""
    pytest.importorskip("google.protobuf")
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("tritonclient is not installed")
    path = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
