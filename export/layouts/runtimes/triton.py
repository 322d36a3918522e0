"""The layout of Triton Inference Server: a model repository for its ONNX Runtime backend.

    model_repository/<graph>/config.pbtxt
    model_repository/<graph>/1/model.onnx/model.onnx, model.onnx.data, adapter.data

The server runs graphs, not conversations: a client scatters features, keeps the KV cache and looks at ``risk_score``,
as :class:`~safetykit.export.runtime.onnx_vlm.OnnxVLM` does. A graph of several files is a folder there, which bears the
name that a single file would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ....adapters.artifact.files import write_atomic
from ....adapters.errors import UnsupportedGraph
from ...manifest import GRAPHS, ExportManifest, Graph
from ..layout import RuntimeLayout
from ..registry import register

if TYPE_CHECKING:
    import onnx_ir as ir

REPOSITORY, CONFIG = "model_repository", "config.pbtxt"
# ONNX's types by name, and Triton's
_TYPES = {
    "BOOL": "TYPE_BOOL",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FLOAT16": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
    "BFLOAT16": "TYPE_BF16",
}


@register
class Triton(RuntimeLayout):
    """The server's ONNX Runtime backend; a client drives the graphs."""

    name, title = "triton", "Triton Inference Server"
    template = RuntimeLayout.own_template("triton")

    def paths(self, models: Mapping[Graph, ir.Model]) -> dict[Graph, str]:
        return {name: f"{REPOSITORY}/{name}/1/model.onnx/model.onnx" for name in GRAPHS}

    def data_name(self, graph: str, number: int) -> str:
        return f"{graph}.data" if number == 0 else "adapter.data"

    def finish(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Write a configuration for every graph."""
        for name in GRAPHS:
            target = folder / REPOSITORY / name / CONFIG
            write_atomic(target, model_config(name, models[name]).encode())


def model_config(name: Graph, model: ir.Model) -> str:
    """``config.pbtxt`` of a graph; every size that varies is -1, and what the graph states of a detector is repeated.

    Raises:
        UnsupportedGraph: an input or output has a type that Triton does not know.
    """
    needed = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    lines = [
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        "max_batch_size: 0",
        *_tensors("input", needed),
        *_tensors("output", model.graph.outputs),
        "version_policy { latest { num_versions: 1 } }",
        "# On GPUs write KIND_GPU.",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]
    for key, value in sorted(model.metadata_props.items()):
        lines.append(f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, values: Iterable[ir.Value]) -> list[str]:
    lines = []
    for value in values:
        dtype = None if value.dtype is None else _TYPES.get(value.dtype.name)
        if dtype is None or value.shape is None:
            raise UnsupportedGraph(
                f"Triton cannot be told of `{value.name}`: its type is {value.dtype}, its shape {value.shape}.",
                "Use --layout onnx.",
            )
        sizes = [size if isinstance(size, int) else -1 for size in value.shape]
        # a tensor without axes is sent as one of a single element
        shape = f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
        lines.append(f"{kind} {{ name: {_text(str(value.name))} data_type: {dtype} {shape} }}")
    return lines


def _text(value: str) -> str:
    """A string literal; what JSON escapes, the text format reads alike."""
    return json.dumps(value, ensure_ascii=False)
