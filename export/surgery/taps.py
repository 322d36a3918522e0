"""Taps: places in a graph where a hidden state is read and its replacement put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ...adapters.artifact.sites import Site
from ...adapters.errors import UnsupportedGraph
from ..manifest import Graph
from ..names import IMAGE_FEATURES, LOGITS
from .residual import ResidualStream, Step, head_output, skip_bias

_FEATURES = IMAGE_FEATURES  # what the projector gives, where the vision encoder names no other value


@dataclass(frozen=True)
class Tap:
    """A hidden state and the way to replace it.

    Attributes:
        value: the hidden state [batch, sequence, d].
        replace: called once with the new hidden state; every reader of the old one then reads it.
    """

    value: ir.Value
    replace: Callable[[ir.Value], None]


def graph_of(site: Site) -> Graph:
    """Which of the three graphs holds ``site``."""
    return "vision_encoder" if site.kind in ("vision", "projector") else "decoder"


def vision_tap(graph: ir.Graph, site: Site) -> Tap:
    """The tap for ``vision`` or ``projector`` in a vision encoder.

    Raises:
        UnsupportedGraph: the graph does not name what its projector reads or gives.
    """
    value = next((value for node in graph for value in node.outputs if value.name == site.kind), None)
    if value is None and site.kind == "projector":
        value = next((output for output in graph.outputs if output.name == _FEATURES), None)
    if value is None:
        raise UnsupportedGraph(
            f"The vision encoder does not say which of its values is the site `{site}`.",
            "Export the base graphs with safetykit, or use a site of the decoder.",
        )
    return _plain(graph, value)


def decoder_tap(graph: ir.Graph, stream: ResidualStream, site: Site) -> Tap:
    """The tap for a site of the decoder.

    Sites of one layer must be tapped and replaced in the order attn, mlp, block.

    Raises:
        UsageError: the decoder has no such layer.
        UnsupportedGraph: the head was not recognised, or the branch is fused with a bias.
    """
    site.require_within(stream.n_layers)
    if site.kind == "logits":
        return _plain(graph, head_output(next(value for value in graph.outputs if value.name == LOGITS)))
    if site.kind == "final_norm":
        if stream.final_norm is None:
            raise UnsupportedGraph("No matrix product that gives `logits` was found.", "Use another site.")
        return _plain(graph, stream.final_norm)
    assert site.layer is not None
    step = stream.steps[2 * site.layer + (site.kind != "attn")]
    if site.kind == "block":
        return _fused_sum(graph, step) if step.fused else _plain(graph, step.node.outputs[0])
    if step.fused and skip_bias(step.node) is not None:
        raise UnsupportedGraph(
            f"The output of {site} is fused with its bias in {step.node.name!r}.", "Use the block's output instead."
        )
    return _plain(graph, step.operand(step.branch))


def _plain(graph: ir.Graph, value: ir.Value) -> Tap:
    # Readers are listed now: the op that will be inserted reads the value too and must keep it.
    readers = tuple(value.uses())

    def replace(new: ir.Value) -> None:
        for node, index in readers:
            node.replace_input_with(index, new)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = new
                new.name, value.name = value.name, f"{value.name}.unadapted"

    return Tap(value, replace)


def _fused_sum(graph: ir.Graph, step: Step) -> Tap:
    """The plain sum of a skip-norm, replaced without unfusing: branch' = branch + (new − sum)."""
    node, branch = step.node, step.operand(step.branch)
    bias = skip_bias(node)
    total = step.operand(step.residual)
    for part in filter(None, (branch, bias)):
        total = _binary(graph, "Add", total, part, branch)

    def replace(new: ir.Value) -> None:
        change = _binary(graph, "Sub", new, total, branch)
        node.replace_input_with(step.branch, _binary(graph, "Add", branch, change, branch))

    return Tap(total, replace)


def _binary(graph: ir.Graph, op_type: str, left: ir.Value, right: ir.Value, like: ir.Value) -> ir.Value:
    node = ir.node(op_type, [left, right])
    graph.append(node)
    output = node.outputs[0]
    output.dtype, output.shape = like.dtype, like.shape
    return output
