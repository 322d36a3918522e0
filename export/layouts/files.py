"""What the layouts share: configuration files, and facts about graphs in the words of runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...adapters.files import write_atomic
from ..layout import ExportManifest, Graph


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A configuration file; empty where there is none."""
    path = folder / name
    return json.loads(path.read_bytes()) if path.is_file() else {}


def write_json(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write a configuration file."""
    write_atomic(folder / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def cache_layers(decoder: ir.Model) -> int:
    """Layers of the KV cache, one that carries gates included."""
    names = [str(value.name) for value in decoder.graph.inputs]
    return sum(name.startswith("past_key_values.") and name.endswith(".key") for name in names)


def graph_dtype(manifest: ExportManifest, name: Graph) -> str:
    """What a graph's weights are stored in: ``fp32``, ``fp16``, ``q4`` (activations in fp32) or ``q4f16``."""
    return manifest.precision
