"""Counting block evaluations in a decoder graph, adapted or not; needs no torch.

Every evaluation of a block's attention has exactly one node that reads the keys cached for its layer.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..names import GATES, cached


def cache_readers(graph: ir.Graph) -> list[tuple[int, bool]]:
    """Attention evaluations: (layer, whether in a branch)."""
    found = []
    for value in graph.inputs:
        place = cached(value.name)
        if place is not None and place[1] == "key":
            # a layer that keeps gates is none that attention reads
            nodes = [node for node in value.consumers() if not str(node.name).startswith(GATES)]
            readers = [node for node in nodes if node.op_type != "Shape"]
            found += [(place[0], node.graph is not graph) for node in readers]
    return found


def block_evaluations(source: Path | bytes) -> int:
    """Block evaluations of one prefill of a decoder graph, its branch included."""
    model = ir.load(source) if isinstance(source, Path) else ir.from_proto(_parse(source))
    return len(cache_readers(model.graph))


def _parse(data: bytes):
    import onnx

    return onnx.ModelProto.FromString(data)
