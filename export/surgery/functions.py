"""An op as a model-local ONNX function.

The op's PyTorch code is traced once per op, dtype, parameter shapes and opset; each adapted layer
then shows one node, such as ``safetykit::SubspaceProjection``, whose parameters are its inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from ...adapters.artifact.intervention import Intervention
from ...adapters.artifact.sites import Gating, Phase, Scope
from ...adapters.errors import UnsupportedGraph
from ...adapters.ops.branch import Branch, BranchOp, get_branch_op
from ...adapters.ops.forcing import ForcedRefusal
from ...adapters.ops.gating import GatedOp, HeldGate
from ...adapters.ops.op import Detector, ScopeMask, get_op, reads_prompt
from ..base.operators import to_onnx
from ..base.optimise import optimise
from ..base.tracing import quiet_export
from ..names import DOMAIN

MIN_OPSET = 18
_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
# Dynamic axes are traced with distinct sizes above 1, so that none is mistaken for a constant.
_BATCH, _SEQUENCE, _RANK = 2, 5, 3
_HIDDEN_AXES = {0: "batch", 1: "sequence"}

_Params = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]  # name, type and shape of each
_Arguments = dict[str, tuple[torch.Tensor, dict[int, str]]]  # an example of each argument, and its symbolic axes


@dataclass(frozen=True)
class OpFunction:
    """A function and how to call it.

    Attributes:
        function: in domain ``safetykit``; a fresh copy, owned by the caller.
        uses: names of the op's arguments that the function takes, in order (unused ones are dropped).
        outputs: type and shape of each result.
    """

    function: ir.Function
    uses: tuple[str, ...]
    outputs: tuple[tuple[ir.DataType, ir.Shape], ...]

    def copy(self) -> OpFunction:
        """A copy with its own function, because a function belongs to one model."""
        return OpFunction(self.function.clone(), self.uses, self.outputs)


def op_function(item: Intervention, hidden: ir.Value, opset: int, *, swappable: bool = False) -> OpFunction:
    """The function of ``item``'s op for a hidden state like ``hidden`` [batch, sequence, d].

    Arguments in order: ``hidden``, ``scope``, runtime inputs [batch, d] float32, stored parameters. A detector takes
    ``past_length`` (int64 scalar) instead of the mask, and gives its risk: NaN past the prompt. An op whose gate is
    held takes, after the mask, ``decides``, whether this call does (bool scalar), and ``held``, the margins [batch].
    An op that reads k further sites takes ``earlier`` [batch, k·d] float32 before its parameters.

    Args:
        swappable: leave the ranks of parameters open.
    """
    dtype, width = _describe(hidden)
    params = _described_params(item.make_op().params, item.tensors)
    reads = len(item.reads)
    return _trace_op(item.op, dtype, width, params, _require_opset(opset), item.gate, reads, swappable).copy()


def branch_functions(branch: Branch, hidden: ir.Value, opset: int) -> tuple[OpFunction, OpFunction]:
    """How a branch starts, (safety, fused) → state, and how its risk is read, (normed, parameters) → [batch]."""
    dtype, width = _describe(hidden)
    params = _described_params(branch.make_op().params, branch.tensors)
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


def _described_params(names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> _Params:
    return tuple((name, tensors[name].dtype, tuple(tensors[name].shape)) for name in names)


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
    params: _Params,
    opset: int,
    gate: Gating,
    reads: int,
    swappable: bool,
) -> OpFunction:
    op = get_op(name)
    stored: _Arguments = {}
    for at, (param, param_dtype, shape) in enumerate(params):
        open_rank = swappable and param in op.ranked
        example = torch.zeros((shape[0], _RANK + 4 * at) if open_rank else shape, dtype=param_dtype)
        stored[param] = (example, {1: f"{param}_rank"} if open_rank else {})
    hidden, scope = _hidden_and_scope(dtype, width)
    if reads:
        stored = {"earlier": (torch.zeros(_BATCH, reads * width), {0: "batch"}), **stored}
    if isinstance(op, Detector):
        return _trace(_Risk(op), {**hidden, "past_length": (torch.tensor(0), {}), **stored}, name, opset)
    if gate != "per-token":
        assert isinstance(op, GatedOp)
        made = HeldGate(op, once=gate == "once")
        state: _Arguments = {"decides": (torch.tensor(True), {}), "held": (torch.zeros(_BATCH), {0: "batch"})}
        return _trace(made, {**hidden, **scope, **state, **stored}, f"{name}_{gate}", opset)
    runtime: _Arguments = {one: (torch.zeros(_BATCH, width), {0: "batch"}) for one in op.runtime_inputs}
    return _trace(op, {**hidden, **scope, **runtime, **stored}, name, opset)


class _Risk(nn.Module):
    """What a detector says of a prompt, in a chunk of what has come of it so far, and NaN of the answer's tokens."""

    def __init__(self, op: Detector) -> None:
        super().__init__()
        self.op = op

    def forward(self, hidden: torch.Tensor, past_length: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        return torch.where(reads_prompt(hidden, past_length), self.op(hidden, **tensors), torch.nan)


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

    def forward(self, normed: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        return self.op.risk(normed, **tensors)


class _ByName(nn.Module):
    """A module whose arguments are given in order, and taken by name."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.module(**dict(zip(self.names, arguments, strict=True)))


@functools.lru_cache(maxsize=32)
def _trace_branch(
    name: str, dtype: torch.dtype, width: int, params: _Params, opset: int
) -> tuple[OpFunction, OpFunction]:
    op = get_branch_op(name)
    example = torch.zeros(_BATCH, _SEQUENCE, width, dtype=dtype), _HIDDEN_AXES
    stored: _Arguments = {param: (torch.zeros(shape, dtype=param_dtype), {}) for param, param_dtype, shape in params}
    start = _trace(_Start(op), {"safety": example, "fused": (example[0].clone(), _HIDDEN_AXES)}, name, opset)
    return start, _trace(_Probe(op), {"normed": example, **stored}, "RiskProbe", opset)


@functools.lru_cache(maxsize=32)
def _trace_forcing(dtype: torch.dtype, width: int, opset: int) -> OpFunction:
    arguments: _Arguments = {
        "logits": (torch.zeros(_BATCH, _SEQUENCE, width, dtype=dtype), _HIDDEN_AXES),
        "risk": (torch.zeros(_BATCH), {0: "batch"}),
        "threshold": (torch.tensor(0.0), {}),
        "token": (torch.tensor(0), {}),
    }
    return _trace(ForcedRefusal(), arguments, "ForcedRefusal", opset)


@functools.lru_cache(maxsize=32)
def _trace_mask(scope: Scope, phase: Phase, dtype: torch.dtype, width: int, opset: int) -> OpFunction:
    hidden, _ = _hidden_and_scope(dtype, width)
    pictures = torch.zeros(_BATCH, _SEQUENCE, dtype=torch.bool)
    arguments: _Arguments = {**hidden, "past_length": (torch.tensor(0), {}), "vision_mask": (pictures, _HIDDEN_AXES)}
    return _trace(ScopeMask(scope, phase), arguments, f"ScopeMask_{scope}_{phase}", opset)


def _hidden_and_scope(dtype: torch.dtype, width: int) -> tuple[_Arguments, _Arguments]:
    hidden = torch.zeros(_BATCH, _SEQUENCE, width, dtype=dtype)
    return {"hidden": (hidden, _HIDDEN_AXES)}, {"scope": (torch.ones(_BATCH, _SEQUENCE, 1), _HIDDEN_AXES)}


def _trace(module: nn.Module, arguments: _Arguments, name: str, opset: int) -> OpFunction:
    examples, axes = zip(*arguments.values(), strict=True)
    with quiet_export():
        named = _ByName(module, tuple(arguments)).eval()
        model = to_onnx(named, examples, opset_version=opset, dynamic_shapes=(axes,)).model
        optimise(model)
    graph = model.graph
    _inline_initializers(graph)
    kept = {}
    for value, argument in zip(list(graph.inputs), arguments, strict=True):
        if value.uses() or value.is_graph_output():
            value.name, kept[argument] = argument, value
    graph.inputs.clear()
    graph.inputs.extend(kept.values())
    ClearMetadataAndDocStringPass()(model)
    for node in graph:  # tools that write a function's nodes into the graph do not all give them names of their own
        node.name = f"{name}/{node.name}"
        for value in node.outputs:
            value.name = f"{name}/{value.name}"
    outputs = []
    for value in graph.outputs:
        assert value.dtype is not None and value.shape is not None
        outputs.append((value.dtype, value.shape))
    return OpFunction(ir.Function(DOMAIN, name, graph=graph, attributes=()), tuple(kept), tuple(outputs))


def _inline_initializers(graph: ir.Graph) -> None:
    # A function has no initializers.
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        constant = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph[0], constant)
        value.replace_all_uses_with(constant.outputs[0])
    graph.initializers.clear()
