"""What the layouts share: configuration files, and facts about graphs in the words of runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.artifact.files import write_atomic
from ..names import cached

if TYPE_CHECKING:
    import onnx_ir as ir


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A configuration file; empty where there is none."""
    path = folder / name
    return json.loads(path.read_bytes()) if path.is_file() else {}


def write_json(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write a configuration file."""
    write_atomic(folder / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def cache_layers(decoder: ir.Model) -> int:
    """Layers of the KV cache, one that carries gates included."""
    places = [cached(value.name) for value in decoder.graph.inputs]
    return sum(place is not None and place[1] == "key" for place in places)


def graph_dtype(model: ir.Model) -> str:
    """What a graph's weights are stored in: ``fp32``, ``fp16``, ``q4`` (activations in fp32), ``q4f16`` or ``q8``."""
    half = any(value.dtype is not None and value.dtype.name == "FLOAT16" for value in model.graph.outputs)
    bits = {node.attributes["bits"].as_int() for node in model.graph if node.op_type == "MatMulNBits"}
    if bits == {4}:
        return "q4f16" if half else "q4"
    if bits or any(node.op_type in ("MatMulInteger", "DequantizeLinear") for node in model.graph):
        return "q8"
    return "fp16" if half else "fp32"
