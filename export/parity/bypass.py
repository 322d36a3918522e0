"""Adapter off, in the graph that ships: its ops taken out of the way must leave the base graph, bit for bit.

Where PyTorch and the graph are different functions, as with weights of 4 bits, this is what shows that surgery touched
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from ..base.reading import read_graph
from ..names import DOMAIN, ENFORCE, LOGITS, POSITION_IDS, PRESENT, is_own
from ..runtime.sessions import open_session
from .gap import Gap

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": bool, "tensor(int64)": np.int64}
_SIZES = {"batch": 2, "sequence": 5}
_PROBES = ((0, 5), (3, 1))  # cached and new tokens; not every decoder takes several after cached ones


def bypassed(model: ir.Model) -> ir.Model:
    """``model`` with every op handing on what it was given, in place."""
    graph = model.graph
    for node in [node for node in graph if _passes_on(node)]:
        before, after = node.inputs[0], node.outputs[0]
        assert before is not None
        for reader, index in list(after.uses()):
            reader.replace_input_with(index, before)
        for at, output in enumerate(graph.outputs):
            if output is after:
                graph.outputs[at] = before
                before.name, after.name = after.name, before.name
    kept = [value for value in graph.outputs if value.name == LOGITS or str(value.name).startswith(PRESENT)]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    used = [value for value in graph.inputs if value.uses() or value.name not in graph.initializers]
    graph.inputs.clear()
    graph.inputs.extend(used)
    TopologicalSortPass()(model)
    return model


def _passes_on(node: ir.Node) -> bool:
    """Whether a node of ours gives a changed version of its first input."""
    name, result = str(node.name), str(node.outputs[0].name)
    if node.op_type == "Add" and is_own(result) and result.endswith(".sum"):
        return True  # a weight's low-rank term
    if node.domain != DOMAIN:
        return False
    changes = name.endswith(".op") and result.endswith(".hidden")
    return changes or name == ENFORCE or result == LOGITS


def check_bypass(folder: Path, decoder: str, base: bytes) -> Gap:
    """Largest difference of logits and caches between a decoder with its ops bypassed and its base, on random states.

    Args:
        decoder: file name of the adapted graph in ``folder``, beside whose data the base's weights lie.
    """
    ours = ir.serde.serialize_model(bypassed(read_graph(folder / decoder))).SerializeToString()
    first, results = open_session(base, data_folder=(folder / decoder).parent), []
    names, known = [value.name for value in first.get_outputs()], {value.name for value in first.get_inputs()}
    for feeds in _probes(first):
        results.append((feeds, first.run(names, feeds)))
    del first  # not beside the other
    gap, second = Gap(0.0, 0.0, 0), open_session(ours, data_folder=(folder / decoder).parent)
    others = [value for value in second.get_inputs() if value.name not in known]  # read by nothing any more
    extra = {one.name: np.zeros([_size(size) for size in one.shape], _TYPES[one.type]) for one in others}
    for feeds, one in results:
        for left, right in zip(one, second.run(names, feeds | extra), strict=True):
            gap = gap.join(Gap.between(left, right))
    return gap


def _size(size: int | str) -> int:
    return size if isinstance(size, int) else _SIZES.get(size, 0)


def _probes(session) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for past, new in _PROBES:
        sizes = {**_SIZES, "sequence": new, "past_sequence": past, "total": past + new}
        feeds = {}
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in value.shape]
            if value.type == "tensor(int64)":
                positions = value.name == POSITION_IDS
                array = np.broadcast_to(np.arange(past, past + shape[-1]), shape) if positions else np.ones(shape)
                feeds[value.name] = array.astype(np.int64)
            elif value.type == "tensor(bool)":
                feeds[value.name] = np.broadcast_to(np.tri(shape[-2], shape[-1], past, dtype=bool), shape).copy()
            else:
                feeds[value.name] = random.standard_normal(shape).astype(_TYPES[value.type])
        yield feeds
