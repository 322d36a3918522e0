"""Operators that PyTorch's exporter translates only after it has decomposed them.

``torch.onnx.export`` runs every captured program a second time, to decompose and to make functional what ONNX has no
counterpart for; that takes about as long as capturing it. In the models exported here little of that is needed: the few
operators below, for which the exporter takes a translation of ours. A program that needs anything else is run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import nn
from torch.export import ExportedProgram

_aten = torch.ops.aten


def _to(x: Any, *arguments: Any, dtype: int | None = None, **_: Any) -> Any:
    """``x.to(dtype)``, ``x.to(device, dtype)`` and ``x.to(dtype=…, layout=…)``: a graph knows no devices."""
    kind = dtype if dtype is not None else next(one for one in arguments if isinstance(one, ir.DataType))
    return op.Cast(x, to=int(kind))


def _and(x: Any, y: Any) -> Any:
    return op.And(x, y) if x.dtype == ir.DataType.BOOL else op.BitwiseAnd(x, y)


def _or(x: Any, y: Any) -> Any:
    return op.Or(x, y) if x.dtype == ir.DataType.BOOL else op.BitwiseOr(x, y)


def _conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """A convolution whose padding is a word: none, or as much as keeps the size (the odd one at the end)."""
    assert weight.shape is not None
    kernel = [int(size) for size in weight.shape[2:]]
    total = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True)]
    before = [one // 2 for one in total]
    after = [one - first for one, first in zip(total, before, strict=True)]
    pads = [*before, *after]
    return op.Conv(x, weight, bias, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _aten.to.dtype: _to,
    _aten.to.device: _to,
    _aten.to.dtype_layout: _to,
    _aten.__and__.Tensor: _and,
    _aten.__or__.Tensor: _or,
    _aten.conv2d.padding: _conv2d,
}
_DROPPED = {_aten._assert_scalar.default, _aten._assert_tensor_metadata.default}  # by the exporter itself


def to_onnx(module: nn.Module, example: tuple[Any, ...], **options: Any) -> torch.onnx.ONNXProgram:
    """``torch.onnx.export`` of ``module``, unoptimised; ``options`` are its own."""
    options |= {"dynamo": True, "custom_translation_table": TRANSLATIONS, "verbose": False, "optimize": False}
    with torch.no_grad():
        try:
            with _decomposed_where_needed():
                program = torch.onnx.export(module, example, **options)
        except torch.onnx.OnnxExporterError:  # an operator without a translation, which PyTorch lists nowhere
            program = torch.onnx.export(module, example, **options)
    assert program is not None
    return program


@contextlib.contextmanager
def _decomposed_where_needed() -> Iterator[None]:
    """Have ``ExportedProgram.run_decompositions`` return a program with nothing to decompose as it is."""
    decompose: Callable[..., ExportedProgram] = ExportedProgram.run_decompositions

    def run_decompositions(program: ExportedProgram, table: Mapping[Any, Any] | None = None) -> ExportedProgram:
        if table is not None and not any(_needs(target, table) for target in _targets(program)):
            return program
        return decompose(program, table)

    with patch.object(ExportedProgram, "run_decompositions", run_decompositions):
        yield


def _targets(program: ExportedProgram) -> set[Any]:
    return {node.target for node in program.graph_module.graph.nodes if node.op == "call_function"}


def _needs(target: Any, table: Mapping[Any, Any]) -> bool:
    """Whether it is decomposed, changes its input, or holds a graph of its own."""
    if isinstance(target, torch._ops.OpOverload):
        return target not in _DROPPED and (target in table or target._schema.is_mutable)
    return isinstance(target, torch._ops.HigherOrderOperator)
