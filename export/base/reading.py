"""Reading graph files, whose weights may lie in blobs of the Hugging Face Hub's cache.

onnx-ir and ONNX Runtime refuse data files that are links out of the graph's folder. In a snapshot of the cache all are,
so a tensor is said to lie in the blob itself, and a session that is given bytes looks for it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from ...adapters.artifact.hub import plain_file, snapshot_of
from ...adapters.errors import InvalidArtifact
from ...toolkit.model.reasons import reason_of


def loaded(path: Path) -> ir.Model:
    """A graph file as it is.

    Raises:
        InvalidArtifact: it is no ONNX graph.
    """
    try:
        return ir.load(path)
    except Exception as error:  # protobuf, onnx and onnx-ir have no common base class
        raise InvalidArtifact(
            f"{path} is no ONNX graph: {reason_of(error)}", "Get the file again from its source."
        ) from None


def read_graph(path: Path) -> ir.Model:
    """A graph file with its weights where they really lie.

    Raises:
        InvalidArtifact: it is no graph; or weights of one in a snapshot are missing, or a link that leads out of the
            repository.
    """
    model = loaded(path)
    if snapshot_of(path.parent) is not None:
        follow_links(model, path.parent)
    return model


def follow_links(model: ir.Model, folder: Path) -> None:
    """Have weights that are links in ``folder`` lie in their blobs, in place; raises as :func:`read_graph`."""
    for value in holders(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and (folder / tensor.location).is_symlink():
            blob = plain_file(folder, str(tensor.location))
            value.const_value = ir.ExternalTensor(
                blob.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=blob.parent,
            )


def holders(model: ir.Model) -> Iterator[ir.Value]:
    """The values of a model that hold a tensor, those of its subgraphs included."""
    for graph in model.graphs():
        yield from graph.initializers.values()
