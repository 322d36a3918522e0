"""The layout of Triton Inference Server: a model repository for its ONNX Runtime backend, which answers chat requests.

    model_repository/<graph>/config.pbtxt
    model_repository/<graph>/1/model.onnx/model.onnx, model.onnx.data, adapter.data
    model_repository/chat[_stream]/config.pbtxt
    model_repository/chat[_stream]/1/model.py, run_ort.py, drawing.py, growing_text.py, io.json, …

A graph of several files is a folder there, which bears the name that a single file would have. The server batches calls
of a graph whose tensors all begin with the same axis of rows. ``chat`` and ``chat_stream`` are models of its Python
backend: they prepare requests by the code of ``run_ort.py``, call the graphs, keep the cache from call to call, and
refuse what the detector refuses. Without ``run_ort.py`` (``io.json`` says why) there are the graphs alone, which a
client drives as :class:`~safetykit.export.runtime.onnx_vlm.OnnxVLM` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ....adapters.artifact.files import write_atomic
from ....adapters.errors import UnsupportedGraph
from ...manifest import GRAPHS, LAYOUT, ExportManifest, Graph
from ..layout import RuntimeLayout
from ..registry import register

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..interface import GraphIO, Interface

_EXPORT = Path(__file__).parents[2]
CHAT, STREAM = "chat", "chat_stream"
# How these answer: longest answer in tokens, requests that are answered at once, and those that may wait.
SETTINGS = {"max_new_tokens": 512, "parallel": 8, "max_queue": 64}
_OPTIONAL = ("switch", "kept", "parameter")  # roles of inputs that have a default, and that Triton does not know of
MAX_BATCH = 8  # calls of a graph that the server makes one
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
    """The server's ONNX Runtime backend, and its Python backend before it."""

    name, title = "triton", "Triton Inference Server"
    plain_graphs = True
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

    def beside(self, folder: Path, found: Interface) -> dict[str, bytes]:
        """The models that answer chat requests."""
        from ..prepare import PROGRAM, SOURCE

        if found.program is None:
            return {}
        names = ["tokenizer.json", *([found.retrieval.texts] if found.retrieval else [])]
        read = {LAYOUT.interface: (folder / LAYOUT.interface).read_bytes()}
        read |= {name: (folder / name).read_bytes() for name in names}
        code = {
            "model.py": _EXPORT / "layouts" / "triton_chat.py",
            PROGRAM: SOURCE,
            **{name: _EXPORT / "runtime" / name for name in ("drawing.py", "growing_text.py")},
        }
        files = {**{name: path.read_bytes() for name, path in code.items()}, **read}
        settings = {name: str(value) for name, value in SETTINGS.items()}
        settings["rows"] = " ".join(name for name, graph in found.graphs.items() if _batches(_axes(graph)))
        settings |= {f"sha256.{name}": hashlib.sha256(data).hexdigest() for name, data in read.items()}
        configs = {
            f"{REPOSITORY}/{name}/{CONFIG}": chat_config(name, settings, stream=name == STREAM).encode()
            for name in (CHAT, STREAM)
        }
        copies = {f"{REPOSITORY}/{name}/1/{file}": files[file] for name in (CHAT, STREAM) for file in files}
        return {**configs, **copies}


def model_config(name: Graph, model: ir.Model) -> str:
    """``config.pbtxt`` of a graph; every size that varies is -1, and what the graph states of a detector is repeated.

    Raises:
        UnsupportedGraph: an input or output has a type that Triton does not know.
    """
    needed = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    rows = _batches(
        getattr(one.shape[0], "value", None) if one.shape else None for one in (*needed, *model.graph.outputs)
    )
    lines = [
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH if rows else 0}",
        *(["dynamic_batching { }"] if rows else []),
        *_tensors("input", needed, rows=rows),
        *_tensors("output", model.graph.outputs, rows=rows),
        "version_policy { latest { num_versions: 1 } }",
        "# On GPUs write KIND_GPU.",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *_parameters(model.metadata_props),
    ]
    return "\n".join(lines) + "\n"


def chat_config(name: str, settings: Mapping[str, str], *, stream: bool) -> str:
    """``config.pbtxt`` of a model that answers chat requests, whole or in pieces."""
    lines = [
        f"name: {_text(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        *(["model_transaction_policy { decoupled: true }"] if stream else []),
        'input { name: "request" data_type: TYPE_STRING dims: [ 1 ] }',
        'input { name: "picture" data_type: TYPE_STRING dims: [ 1 ] optional: true }',
        'output { name: "response" data_type: TYPE_STRING dims: [ 1 ] }',
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *_parameters(settings),
    ]
    return "\n".join(lines) + "\n"


def _batches(first: Iterable[object]) -> bool:
    """Whether calls of one shape can be one: every tensor's first axis has the same name, and no number."""
    names = {axis if isinstance(axis, str) else None for axis in first}
    return len(names) == 1 and None not in names


def _axes(graph: GraphIO) -> list[object]:
    tensors = (*(one for one in graph.inputs if one.role not in _OPTIONAL), *graph.outputs)
    return [one.shape[0] if one.shape else None for one in tensors]


def _tensors(kind: str, values: Iterable[ir.Value], *, rows: bool) -> list[str]:
    lines = []
    for value in values:
        dtype = None if value.dtype is None else _TYPES.get(value.dtype.name)
        if dtype is None or value.shape is None:
            raise UnsupportedGraph(
                f"Triton cannot be told of `{value.name}`: its type is {value.dtype}, its shape {value.shape}.",
                "Use --layout onnx.",
            )
        sizes = [size if isinstance(size, int) else -1 for size in value.shape][1 if rows else 0 :]
        # a tensor without axes is sent as one of a single element
        shape = f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
        lines.append(f"{kind} {{ name: {_text(str(value.name))} data_type: {dtype} {shape} }}")
    return lines


def _parameters(values: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in sorted(values.items())
    ]


def _text(value: str) -> str:
    """A string literal; what JSON escapes, the text format reads alike."""
    return json.dumps(value, ensure_ascii=False)
