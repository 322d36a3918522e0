"""Foreign graphs in an export folder: a small graph file of ours beside the weights as they are.

External weights are copied byte for byte; several files become one, one after another. Weights inside a graph file move
to a data file, with the same values.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir

from ...adapters.artifact.hub import plain_file
from ...adapters.errors import InvalidArtifact
from ..base.own import save_graph
from ..base.reading import follow_links, holders, loaded
from ..base.tracing import strip_metadata
from ..manifest import LAYOUT, Graph

_PAGE = 4096


def load_graph(path: Path) -> ir.Model:
    """Read a graph file.

    Raises:
        InvalidArtifact: it is no ONNX graph, or its weights lie outside its folder (and not in the same cache).
    """
    model = loaded(path)
    for tensor in _external(model):
        name = str(tensor.location)
        steps = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        if not name or ".." in steps or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
            raise InvalidArtifact(f"{path} takes weights from {name!r}, outside its folder.", "Do not use this file.")
        if not (path.parent / name).is_file():
            raise InvalidArtifact(
                f"{path} takes weights from {name}, which is not there.", "Get the file too; it belongs to the graph."
            )
        plain_file(path.parent, name)
    follow_links(model, path.parent)
    return model


def save_beside(model: ir.Model, folder: Path, name: Graph) -> None:
    """Write ``model``, read by :func:`load_graph`, as graph ``name`` of an export folder."""
    strip_metadata(model)
    target = folder / LAYOUT.graph(name)
    tensors = list(_external(model))
    if not tensors:
        save_graph(model, target)
        return
    data = folder / LAYOUT.data(name)
    starts = _copy(sorted({Path(tensor.path) for tensor in tensors}), data)
    for value in holders(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                data.name,
                starts[Path(tensor.path)] + (tensor.offset or 0),
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=folder,
            )
    ir.save(model, target)


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for value in holders(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value


def _copy(files: list[Path], target: Path) -> dict[Path, int]:
    """Copy files into one; where each of them starts."""
    starts = {}
    with open(target, "wb") as out:
        for path in files:
            out.write(b"\0" * (-out.tell() % _PAGE))
            starts[path] = out.tell()
            with open(path, "rb") as file:
                shutil.copyfileobj(file, out, 2**24)
        out.flush()
        os.fsync(out.fileno())
    return starts
