"""Inputs and outputs of finished graphs, found by name and put in each other's place."""

from __future__ import annotations

import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph
from ..names import INPUT_IDS, own
from ..surgery.building import GraphBuilder


def input_of(model: ir.Model, name: str, what: str) -> ir.Value:
    """The input of this name.

    Args:
        what: how an error calls the graph.

    Raises:
        UnsupportedGraph: it has none.
    """
    found = next((value for value in model.graph.inputs if value.name == name), None)
    if found is None:
        raise UnsupportedGraph(f"The {what} has no input `{name}`.", "Export the base graphs again.")
    return found


def token_ids_of(model: ir.Model) -> ir.Value:
    """The token ids that a token embedding reads.

    Raises:
        UnsupportedGraph: it reads none, or their type is not stated.
    """
    found = input_of(model, INPUT_IDS, "token embedding")
    if found.shape is None or found.dtype is None:
        raise UnsupportedGraph(f"The type of `{INPUT_IDS}` is not stated.", "Export the base graphs again.")
    return found


def output_of(model: ir.Model, name: str) -> ir.Value:
    """The output of this name.

    Raises:
        UnsupportedGraph: there is none.
    """
    found = next((value for value in model.graph.outputs if value.name == name), None)
    if found is None:
        raise UnsupportedGraph(f"A graph has no output `{name}`.", "Export the base graphs again.")
    return found


def replace_output(model: ir.Model, old: ir.Value, new: ir.Value, part: str) -> None:
    """Give ``new`` as the output in the place of ``old`` and by its name; ``part`` says in whose course."""
    at = list(model.graph.outputs).index(old)
    old.name, new.name = own(f"{part}.{old.name}"), old.name
    model.graph.outputs[at] = new


def shape_of(value: ir.Value) -> list[int | str]:
    """Sizes of a value whose last one is fixed.

    Raises:
        UnsupportedGraph: it is not stated.
    """
    if value.shape is None or not isinstance(value.shape[-1], int):
        raise UnsupportedGraph(f"The width of `{value.name}` is not stated.", "Export the base graphs again.")
    return [size if isinstance(size, int) else str(size) for size in value.shape]


def replace_input(builder: GraphBuilder, old: ir.Value, flags: ir.Value) -> None:
    """Have the readers of an input read ``flags`` [like it] bool, in its type; the input goes."""
    assert old.dtype is not None
    if old.dtype != ir.DataType.BOOL:
        flags = builder.node("Cast", [flags], old.dtype, flags.shape, {"to": old.dtype.value})
    old.replace_all_uses_with(flags)
    builder.graph.inputs.remove(old)
