"""From a graph's module to an ONNX graph, without looking at a weight.

``torch.onnx.export`` sees parameters as fake tensors, of which only type and shape are known. What it would fold into
the weights is done while they are written (:mod:`.streamed`); the exporter's own optimisations follow on the graph that
knows where its weights lie, and read small ones only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CheckerPass, ClearMetadataAndDocStringPass, ShapeInferencePass

from ...toolkit.model.weightless import without_weights
from ...toolkit.model.weights import HeldWeight
from ..manifest import Precision
from ..names import LOGITS
from .experts import add_experts
from .logits import keep_last_logits
from .operators import to_onnx
from .optimise import optimise
from .recurrent import add_rules
from .simplify import simplify
from .specs import GraphSpec
from .streamed import WeightOf, attach, fold_transposes

OPSET = 20
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "int4": torch.float32}


def export_graph(spec: GraphSpec, precision: Precision, weight_of: WeightOf = HeldWeight) -> ir.Model:
    """Trace one graph; its weights are read when it is written.

    Inner values named by ``spec.taps`` keep those names and are not outputs.

    Args:
        precision: of weights and activations, fp32 where weights are to be quantised; buffers, such as rotary
            frequencies, keep their own.
        weight_of: gives the values of a parameter; by default it holds them itself.
    """
    with quiet_export():
        program = trace(spec, DTYPES[precision])
        attach(program.model, spec.module, weight_of)
        fold_transposes(program.model)
        optimise(program.model)
    model = program.model
    for _ in spec.taps:  # pop: deleting a slice would leave the values marked as outputs
        model.graph.outputs.pop()
    simplify(model)
    ShapeInferencePass()(model)  # values made by optimisations have no type of their own
    strip_metadata(model)
    with quiet_export():
        add_experts(model, spec.module, OPSET)
        add_rules(model, OPSET)
    CheckerPass(full_check=True)(model)
    if LOGITS in spec.outputs:
        keep_last_logits(model)
    return model


def trace(spec: GraphSpec, dtype: torch.dtype) -> torch.onnx.ONNXProgram:
    """The graph as the exporter writes it down; initializers that stand for parameters have no values."""
    return to_onnx(
        without_weights(spec.module, dtype),
        spec.args(dtype),
        opset_version=OPSET,
        input_names=list(spec.inputs),
        output_names=[*spec.outputs, *spec.taps],
        dynamic_shapes=spec.dynamic,
    )


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep the exporter's notes about its own internals off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def strip_metadata(model: ir.Model) -> None:
    """Remove stack traces and doc strings: they hold paths of the machine that exported."""
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
