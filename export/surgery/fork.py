"""Forking: a branch put into a finished decoder graph, so that the graph itself says how harmful a request is.

After block f the graph forks. The answer goes on as before. The branch starts from ``FusedProjection(H_s, H_f)``
and runs copies of the nodes between the stream's value at block s and the final norm, then a probe:

- A copied node reads the *same* initializers, masks, rotary values and ``past_key_values.*`` inputs; only the
  stream is its own. Weights are not copied: the file grows by the copied nodes.
- The branch is the body of one ``If`` on a past length of 0, so decoding steps do not run it. The output
  ``risk_score`` [batch] float32 is NaN there: nothing was judged, and no comparison with NaN refuses.
- It reads a whole prompt at once: what it computed of an earlier chunk is in no cache. A call of several tokens after
  others has an infinite risk, so that a runtime which feeds a prompt in chunks refuses it, and answers none unjudged.
- At prefill the cache inputs are empty, so a copied attention reads what the branch computed and nothing else, and
  the caches that it makes are dropped. Lengths given to fused attention (``seqlens_k``) are those of the prompt.
- Ops baked into blocks after s are copied with them, their scores are not: the branch runs the blocks as adapted.
- A function that a copy calls is a copy, too: its inner values have names of their own when it is inlined.
- A skip-norm gives the sum and its norm. Both start anew: the sum is the branch's first state, the norm is taken
  of it by the unfused operator with the same weight.

Why an ``If`` (``bench/detector_latency.py``, 197M parameters, 16 blocks, s = 6, f = 7, 128 tokens, two busy CPU cores,
CPU time over the unmodified graph): prefill 1.55 in an ``If`` and 1.53 without one, for 25 blocks over 16 (control
1.00); decode 1.04 in an ``If`` (control 1.11) and 1.70 without one. Its body reads external data through the outer
graph, and the session shares them: 813 MB opened against 768 MB unmodified, where a second graph for the risk took
1177 MB. The file grew by 0.02 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...adapters.artifact.sites import Site
from ...adapters.errors import UnsupportedGraph
from ...adapters.ops.branch import Branch
from ...adapters.ops.op import Corrector
from ..names import BRANCH, OP, RISK
from ..passes import GraphPass, broken
from .bake import Placed, add_risk
from .blocks import cache_readers
from .building import GraphBuilder
from .functions import branch_functions
from .residual import ResidualStream, skip_bias

_IN_BRANCH = "_in_branch"
_UNJUDGED = ("inf", "nan")  # the risk of a later chunk of a prompt, and of the answer's tokens
_UNFUSED = {
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", (2,)),
    "SkipLayerNormalization": ("LayerNormalization", (2, 3)),
}


def fork(model: ir.Model, stream: ResidualStream, branch: Branch, placed: Sequence[Placed] = ()) -> ir.Model:
    """Put ``branch`` into a decoder in place and return it.

    Args:
        stream: as found before anything was baked.
        placed: the interventions that were baked since.

    Raises:
        UsageError: a site does not exist.
        UnsupportedGraph: the graph holds a detector already, or its head was not recognised.
    """
    return ForkPass(stream, branch, placed).run(model)


@dataclass(frozen=True)
class _State:
    """The stream after a block.

    Attributes:
        value: the sum [batch, sequence, d].
        normed: what a fused addition gives beside it.
    """

    value: ir.Value
    normed: ir.Value | None = None


class ForkPass(GraphPass):
    """requires: both sites exist, the head is known, and nothing yields a risk yet.
    ensures: the checker accepts the graph if it accepted it before; every node that was there is there and reads
    what it read; the branch reads the KV cache of every block after s once, and of no other.
    """

    def __init__(self, stream: ResidualStream, branch: Branch, placed: Sequence[Placed]) -> None:
        super().__init__()
        self.stream, self.branch, self.placed = stream, branch, tuple(placed)
        self._before: dict[ir.Node, tuple[ir.Value | None, ...]] = {}

    def requires(self, model: ir.Model) -> None:
        for site in (self.branch.safety, self.branch.fused):
            site.require_within(self.stream.n_layers)
        if self.stream.final_norm is None:
            raise UnsupportedGraph("No matrix product that gives `logits` was found.", "Export the decoder again.")
        if any(value.name == RISK for value in model.graph.outputs):
            raise UnsupportedGraph(f"The graph already has an output `{RISK}`.", "Start from the base graph.")
        self.note_checker(model)
        self._before = {node: tuple(node.inputs) for node in model.graph}

    def change(self, model: ir.Model) -> None:
        builder = GraphBuilder(model)
        safety, fused = (self._state(builder, site) for site in (self.branch.safety, self.branch.fused))
        nothing = builder.node("Equal", [builder.past_length(), _zero(builder)], ir.DataType.BOOL, [])
        then_branch, else_branch = self._branch(builder, safety, fused.value), _no_risk(builder, fused.value)
        branches = {"then_branch": then_branch, "else_branch": else_branch}
        add_risk(model.graph, builder.node("If", [nothing], ir.DataType.FLOAT, ["batch"], branches))

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "its branch")
        now = {node: tuple(node.inputs) for node in model.graph}
        if any(now.get(node) != inputs for node, inputs in self._before.items()):
            raise broken("The branch has changed the answer's own nodes")
        assert self.branch.safety.layer is not None
        wanted = list(range(self.branch.safety.layer + 1, self.stream.n_layers))
        found = sorted(layer for layer, inside in cache_readers(model.graph) if inside)
        if found != wanted:
            raise broken(f"The branch runs blocks {found} instead of {wanted}")

    def _state(self, builder: GraphBuilder, site: Site) -> _State:
        """The stream after the block of ``site``, with what was baked there."""
        assert site.layer is not None
        step = self.stream.steps[2 * site.layer + 1]
        if not step.fused:
            return _State(self._adapted(builder.graph, site, step.node.outputs[0]))
        node = step.node
        if len(node.outputs) > 3 and node.outputs[3].name:
            return _State(node.outputs[3], node.outputs[0])
        total = step.operand(step.residual)
        for part in (step.operand(step.branch), skip_bias(node)):
            if part is not None:
                total = builder.node("Add", [total, part], total.dtype, total.shape)
        return _State(total, node.outputs[0])

    def _adapted(self, graph: ir.Graph, site: Site, value: ir.Value) -> ir.Value:
        """What the readers of ``value`` at ``site`` read after baking."""
        here = [
            one.name(OP) for one in self.placed if one.item.site == site and isinstance(one.item.make_op(), Corrector)
        ]
        return next((node.outputs[0] for node in graph if here and node.name == here[-1]), value)

    def _branch(self, builder: GraphBuilder, safety: _State, fused: ir.Value) -> ir.Graph:
        """The body of the ``If``: start, copies of the blocks after s, probe."""
        assert self.stream.final_norm is not None
        end = self._adapted(builder.graph, Site("final_norm"), self.stream.final_norm)
        region = _between(builder.graph, [safety.value, safety.normed], end)
        start_function, probe_function = (
            builder.register(made) for made in branch_functions(self.branch, fused, builder.opset)
        )
        parameters = {
            name: builder.constant(f"{BRANCH}.{name}", self.branch.tensors[name].numpy(force=True))
            for name in self.branch.make_op().params
        }
        body = builder.open(ir.Graph([], [], nodes=[], opset_imports=builder.graph.opset_imports, name=BRANCH))
        (start,) = builder.call(start_function, {"safety": safety.value, "fused": fused}, f"{BRANCH}.start")
        copies: dict[ir.Value, ir.Value] = {safety.value: start}
        if safety.normed is not None:
            copies[safety.normed] = _norm(builder, self.stream.steps[2 * self.branch.safety.layer + 1].node, start)
        for node in region:
            _rename_function(builder, copy_node(node, copies, body))
        (risk,) = builder.call(probe_function, {"normed": copies[end], **parameters}, f"{BRANCH}.probe")
        return builder.close(body, risk)


def copy_node(node: ir.Node, copies: dict[ir.Value, ir.Value], graph: ir.Graph) -> ir.Node:
    """Append a copy of ``node`` that reads copies where there are any; its results are added to ``copies``."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        [copies.get(value, value) if value is not None else None for value in node.inputs],
        node.attributes.values(),
        overload=node.overload,
        num_outputs=len(node.outputs),
        version=node.version,
        name=f"{BRANCH}/{node.name}",
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name = f"{BRANCH}/{old.name}" if old.name else old.name
        new.type, new.shape = old.type, old.shape
        copies[old] = new
    graph.append(copy)
    return copy


def _rename_function(builder: GraphBuilder, node: ir.Node) -> None:
    """Let a copied call be one of a function of its own. ONNX Runtime names what it inlines after the function, and in
    a branch as outside of it: a graph that its optimiser saves would give two values one name."""
    function = builder.model.functions.get(node.op_identifier())
    if function is None:
        return
    apart = (function.domain, f"{function.name}{_IN_BRANCH}", function.overload)
    if apart not in builder.model.functions:
        copied = function.clone()
        copied.name = apart[1]
        builder.model.functions[apart] = copied
    node.op_type = apart[1]


def _between(graph: ir.Graph, starts: Sequence[ir.Value | None], end: ir.Value) -> list[ir.Node]:
    """The nodes on the ways from ``starts`` to ``end``, in the order of the graph, which must be sorted."""
    reached = {value for value in starts if value is not None}
    forward = []
    for node in graph:
        if not reached.isdisjoint(node.inputs):
            forward.append(node)
            reached |= set(node.outputs)
    wanted, region = {end}, []
    for node in reversed(forward):
        if not wanted.isdisjoint(node.outputs):
            wanted |= {value for value in node.inputs if value is not None}
            region.append(node)
    return region[::-1]


def _norm(builder: GraphBuilder, node: ir.Node, state: ir.Value) -> ir.Value:
    """The norm that a skip-norm takes of its sum, of ``state`` instead."""
    op_type, weights = _UNFUSED[node.op_type]
    epsilon = node.attributes.get("epsilon")
    attributes = {"axis": -1, "epsilon": 1e-12 if epsilon is None else epsilon.as_float()}
    inputs = [state, *(node.inputs[index] for index in weights if index < len(node.inputs))]
    return builder.node(op_type, [value for value in inputs if value is not None], state.dtype, state.shape, attributes)


def _no_risk(builder: GraphBuilder, like: ir.Value) -> ir.Graph:
    """The other body of the ``If``: for every row NaN, or infinity where the call brings several tokens."""
    said = {name: builder.constant(f"{BRANCH}.{name}", np.array([getattr(np, name)], np.float32)) for name in _UNJUDGED}
    one = builder.constant(f"{BRANCH}.one", np.array(1, np.int64))
    body = builder.open(ir.Graph([], [], nodes=[], opset_imports=builder.graph.opset_imports, name=f"{BRANCH}.none"))
    batch = builder.node("Shape", [like], ir.DataType.INT64, [1], {"start": 0, "end": 1})
    several = builder.node("Greater", [builder.new_tokens(), one], ir.DataType.BOOL, [])
    risk = builder.node("Where", [several, *said.values()], ir.DataType.FLOAT, [1])
    return builder.close(body, builder.node("Expand", [risk, batch], ir.DataType.FLOAT, ["batch"]))


def _zero(builder: GraphBuilder) -> ir.Value:
    return builder.constant(f"{BRANCH}.zero", np.array(0, np.int64))
