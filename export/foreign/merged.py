"""Merged decoders: two graphs, without and with a cache, as the bodies of one ``If``.

Older exporters wrote them, switched by the input ``use_cache_branch``. The body with a cache is the decoder that we
want, as long as it also reads a prompt with an empty cache; some were traced for one token at a time and do not.
The caller compares the two, see :func:`~safetykit.export.foreign.importing.import_graphs`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from ...adapters.errors import UnsupportedGraph

SWITCH = "use_cache_branch"


def is_merged(model: ir.Model) -> bool:
    """Whether the graph is switched by ``use_cache_branch``."""
    return any(value.name == SWITCH for value in model.graph.inputs)


def take_cached_branch(model: ir.Model) -> None:
    """Replace the ``If`` by its body with a cache, in place; the switch leaves the inputs.

    Raises:
        UnsupportedGraph: the switch decides about something else than one ``If`` that yields all outputs.
    """
    graph = model.graph
    switch = next(value for value in graph.inputs if value.name == SWITCH)
    chosen = [node for node in graph if node.op_type == "If" and _condition(node) is switch]
    if len(chosen) != 1:
        raise UnsupportedGraph(
            f"`{SWITCH}` decides {len(chosen)} Ifs, not one.", "Use a decoder export without merged branches."
        )
    (node,) = chosen
    bodies = [attribute.as_graph() for attribute in node.attributes.values()]
    cached = [body for body in bodies if _reads_cache(body)]
    if len(cached) != 1:
        raise UnsupportedGraph(
            f"{len(cached)} bodies of the merged decoder read a cache, not one.",
            "Use a decoder export without merged branches.",
        )
    (body,) = cached
    inner = list(body.outputs)
    body.outputs.clear()
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        if name in graph.initializers:
            value.name = f"{SWITCH}/{name}"
        graph.register_initializer(value)
    nodes = list(body)
    body.remove(nodes)
    taken = {value.name for one in graph for value in one.outputs} | {value.name for value in graph.inputs}
    for one in nodes:
        for value in one.outputs:
            if value.name in taken and value not in inner:
                value.name = f"{SWITCH}/{value.name}"
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, inner, strict=True):
        _replace(graph, old, new)
    graph.remove(node, safe=True)
    graph.inputs.remove(switch)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)


def _condition(node: ir.Node) -> ir.Value | None:
    """What decides an ``If``, behind casts and reshapes."""
    value = node.inputs[0]
    while value is not None and (made := value.producer()) is not None:
        if made.op_type not in ("Cast", "Squeeze", "Reshape", "Identity"):
            return value
        value = made.inputs[0]
    return value


def _reads_cache(body: ir.Graph) -> bool:
    inputs = (value for node in body for value in node.inputs if value is not None)
    return any(value.is_graph_input() and (value.name or "").startswith("past") for value in inputs)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for reader, index in list(old.uses()):
        reader.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
            name, old.name = old.name, f"{SWITCH}/{old.name}"
            new.name = name
            new.shape = new.shape or old.shape
            new.dtype = new.dtype or old.dtype
