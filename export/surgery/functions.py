"""An op as a model-local ONNX function.

The op's PyTorch code is traced once per op, dtype, parameter shapes and opset; each adapted layer
then shows one node, such as ``safetykit::SubspaceProjection``, whose parameters are its inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from ...adapters.artifact.adapter import Intervention
from ...adapters.artifact.sites import Gating, Phase, Scope
from ...adapters.errors import UnsupportedGraph
from ...adapters.ops.branch import Branch, BranchOp, get_branch_op
from ...adapters.ops.forcing import ForcedRefusal
from ...adapters.ops.gating import GatedOp, HeldGate
from ...adapters.ops.op import Op, ScopeMask, get_op
from ..base.own import quiet_export
from .residual import DOMAIN

MIN_OPSET = 18
_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
# Dynamic axes are traced with distinct sizes above 1, so that none is mistaken for a constant.
_BATCH, _SEQUENCE, _RANK = 2, 5, 3
_HIDDEN_AXES = {0: "batch", 1: "sequence"}


@dataclass(frozen=True)
class OpFunction:
    """A function and how to call it.

    Attributes:
        function: in domain ``safetykit``; a fresh copy, owned by the caller.
        uses: indices of the op's arguments that the function takes (unused ones are dropped).
        outputs: type and shape of each result.
    """

    function: ir.Function
    uses: tuple[int, ...]
    outputs: tuple[tuple[ir.DataType, ir.Shape], ...]

    def copy(self) -> OpFunction:
        """The same with a function of its own: a function belongs to one model."""
        return OpFunction(self.function.clone(), self.uses, self.outputs)


def op_function(item: Intervention, hidden: ir.Value, opset: int, *, swappable: bool = False) -> OpFunction:
    """The function of ``item``'s op for a hidden state like ``hidden`` [batch, sequence, d].

    Arguments in order: hidden, scope mask, runtime inputs [batch, d] float32, stored parameters. A detecting op takes
    the past length (int64 scalar) instead of the mask, and gives its risk alone: NaN past the prefill. An op whose
    gate is held takes, after the mask, whether this call decides (bool scalar) and the held margins [batch].

    Args:
        swappable: leave the ranks of parameters open.
    """
    dtype, width = _describe(hidden)
    params = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in item.arguments())
    return _trace_op(item.op, dtype, width, params, _require_opset(opset), item.gate, swappable).copy()


def branch_functions(branch: Branch, hidden: ir.Value, opset: int) -> tuple[OpFunction, OpFunction]:
    """How a branch starts, (safety, fused) → state, and how its risk is read, (normed, *parameters) → [batch]."""
    dtype, width = _describe(hidden)
    params = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in branch.arguments())
    start, risk = _trace_branch(branch.op, dtype, width, params, _require_opset(opset))
    return start.copy(), risk.copy()


def forcing_function(logits: ir.Value, opset: int) -> OpFunction:
    """:class:`ForcedRefusal` for logits [batch, sequence, vocabulary] like these."""
    dtype, width = _describe(logits)
    return _trace_forcing(dtype, width, _require_opset(opset)).copy()


def mask_function(scope: Scope, phase: Phase, hidden: ir.Value, opset: int) -> OpFunction:
    """The scope mask as a function of hidden, past length and vision mask."""
    dtype, width = _describe(hidden)
    return _trace_mask(scope, phase, dtype, width, _require_opset(opset)).copy()


def _describe(hidden: ir.Value) -> tuple[torch.dtype, int]:
    shape = hidden.shape
    if shape is None or len(shape) != 3 or not isinstance(shape[2], int) or hidden.dtype not in _DTYPES:
        raise UnsupportedGraph(
            f"The value {hidden.name!r} is {hidden.dtype} {shape}, not a float [batch, sequence, width].",
            "Run onnx shape inference on the graph first.",
        )
    return _DTYPES[hidden.dtype], shape[2]


def _require_opset(opset: int) -> int:
    if opset < MIN_OPSET:
        raise UnsupportedGraph(f"The graph has opset {opset}.", f"Convert it to opset {MIN_OPSET} or later.")
    return opset


@functools.lru_cache(maxsize=128)
def _trace_op(
    name: str,
    dtype: torch.dtype,
    width: int,
    params: tuple[tuple[torch.dtype, tuple[int, ...]], ...],
    opset: int,
    gate: Gating,
    swappable: bool,
) -> OpFunction:
    op = get_op(name)
    runtime = [torch.zeros(_BATCH, width) for _ in op.runtime_inputs]
    stored, param_axes = [], []
    for at, (param, (param_dtype, shape)) in enumerate(zip(op.params, params, strict=True)):
        open_rank = swappable and param in op.ranked
        stored.append(torch.zeros((shape[0], _RANK + 4 * at) if open_rank else shape, dtype=param_dtype))
        param_axes.append({1: f"{param}_rank"} if open_rank else {})
    args = (*_hidden_and_scope(dtype, width), *runtime, *stored)
    if op.detects:
        args = (args[0], torch.tensor(0), *stored)
        return _trace(_Risk(op), args, (_HIDDEN_AXES, {}, tuple(param_axes)), name, opset)
    if op.observes:
        return _trace(_Extras(op), args, (_HIDDEN_AXES, _HIDDEN_AXES, tuple(param_axes)), name, opset)
    if gate == "held":
        assert isinstance(op, GatedOp)
        args = (args[0], args[1], torch.tensor(True), torch.zeros(_BATCH), *stored)
        axes = (_HIDDEN_AXES, _HIDDEN_AXES, {}, {0: "batch"}, tuple(param_axes))
        return _trace(HeldGate(op), args, axes, f"{name}_held", opset)
    # forward(hidden, scope, *tensors) of the base class: the axes follow the flat argument list
    return _trace(op, args, (_HIDDEN_AXES, _HIDDEN_AXES, *({0: "batch"} for _ in runtime), *param_axes), name, opset)


class _Extras(nn.Module):
    """What an observing op says of a hidden state."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, hidden: torch.Tensor, scope: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.op(hidden, scope, *tensors)[1:]


class _Risk(nn.Module):
    """What a detecting op says of a prefill, and NaN afterwards."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, hidden: torch.Tensor, past_length: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        _, risk = self.op(hidden, hidden[..., :1], *tensors)
        return torch.where(past_length == 0, risk, torch.nan)


class _Start(nn.Module):
    def __init__(self, op: BranchOp) -> None:
        super().__init__()
        self.op = op

    def forward(self, safety: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        return self.op.start(safety, fused)


class _Probe(nn.Module):
    def __init__(self, op: BranchOp) -> None:
        super().__init__()
        self.op = op

    def forward(self, normed: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return self.op.risk(normed, *tensors)


@functools.lru_cache(maxsize=32)
def _trace_branch(
    name: str, dtype: torch.dtype, width: int, params: tuple[tuple[torch.dtype, tuple[int, ...]], ...], opset: int
) -> tuple[OpFunction, OpFunction]:
    op = get_branch_op(name)
    hidden, _ = _hidden_and_scope(dtype, width)
    stored = [torch.zeros(shape, dtype=param_dtype) for param_dtype, shape in params]
    start = _trace(_Start(op), (hidden, hidden.clone()), (_HIDDEN_AXES, _HIDDEN_AXES), name, opset)
    risk = _trace(_Probe(op), (hidden, *stored), (_HIDDEN_AXES, ({},) * len(stored)), "RiskProbe", opset)
    return start, risk


@functools.lru_cache(maxsize=32)
def _trace_forcing(dtype: torch.dtype, width: int, opset: int) -> OpFunction:
    logits, _ = _hidden_and_scope(dtype, width)
    args = (logits, torch.zeros(_BATCH), torch.tensor(0.0), torch.tensor(0))
    return _trace(ForcedRefusal(), args, (_HIDDEN_AXES, {0: "batch"}, {}, {}), "ForcedRefusal", opset)


@functools.lru_cache(maxsize=32)
def _trace_mask(scope: Scope, phase: Phase, dtype: torch.dtype, width: int, opset: int) -> OpFunction:
    hidden, _ = _hidden_and_scope(dtype, width)
    args = (hidden, torch.tensor(0), torch.zeros(_BATCH, _SEQUENCE, dtype=torch.bool))
    return _trace(ScopeMask(scope, phase), args, (_HIDDEN_AXES, {}, _HIDDEN_AXES), f"ScopeMask_{scope}_{phase}", opset)


def _hidden_and_scope(dtype: torch.dtype, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(_BATCH, _SEQUENCE, width, dtype=dtype), torch.ones(_BATCH, _SEQUENCE, 1)


def _trace(
    module: nn.Module, args: tuple[torch.Tensor, ...], axes: Sequence[dict[int, str]], name: str, opset: int
) -> OpFunction:
    with quiet_export():
        program = torch.onnx.export(
            module.eval(), args, dynamo=True, opset_version=opset, dynamic_shapes=tuple(axes), verbose=False
        )
    assert program is not None
    model = program.model
    graph = model.graph
    _inline_initializers(graph)
    uses = tuple(index for index, value in enumerate(graph.inputs) if value.uses() or value.is_graph_output())
    kept = [graph.inputs[index] for index in uses]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    ClearMetadataAndDocStringPass()(model)
    outputs = []
    for value in graph.outputs:
        assert value.dtype is not None and value.shape is not None
        outputs.append((value.dtype, value.shape))
    return OpFunction(ir.Function(DOMAIN, name, graph=graph, attributes=()), uses, tuple(outputs))


def _inline_initializers(graph: ir.Graph) -> None:
    # A function has no initializers.
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        constant = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph[0], constant)
        value.replace_all_uses_with(constant.outputs[0])
    graph.initializers.clear()
