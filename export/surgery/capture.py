"""What keeps ONNX Runtime from capturing a CUDA graph of a model, as far as the graph alone shows it.

Capture is refused for a model with control flow, and a replay is wrong where the number of results depends on data.
Which nodes have no CUDA kernel depends on the build of ONNX Runtime: a session on the device says it, and
:func:`~safetykit.export.runtime.sessions.open_session` refuses one that leaves what computes to the CPU.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

_CONTROL_FLOW = frozenset(("If", "Loop", "Scan", "SequenceMap"))
_DATA_SHAPES = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression"))


def control_flow(model: ir.Model) -> Counter[str]:
    """Control flow operators and how often each occurs, those in functions included."""
    return _count(model, _CONTROL_FLOW)


def capture_obstacles(model: ir.Model) -> tuple[str, ...]:
    """What would break the capture of a graph, in words; empty if nothing does."""
    found = [f"{count} {name} (control flow)" for name, count in sorted(control_flow(model).items())]
    shapes = _count(model, _DATA_SHAPES)
    return (*found, *(f"{count} {name} (its result's size depends on data)" for name, count in sorted(shapes.items())))


def _count(model: ir.Model, wanted: frozenset[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        nodes = ir.traversal.RecursiveGraphIterator(graph)
        found.update(node.op_type for node in nodes if node.domain == "" and node.op_type in wanted)
    return found
