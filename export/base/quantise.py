"""int4: our own decoder, quantised by ONNX Runtime's quantiser before any adapter goes in.

Every matrix product with a constant weight becomes a ``MatMulNBits``: weights rounded to 4 bits in blocks of inputs,
w ≈ (code − 8) · scale with one scale per block; activations are rounded to 8 bits on their way into a product. Norms,
rotary tables, vision encoder and embedding stay as they are. Adapter ops are full precision by construction: they do
not exist yet.

Codes are made while the data file is written, some outputs of one matrix at a time: a block lies within one output, so
that the codes do not depend on how many are made at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph, UsageError
from ..passes import GraphPass, broken
from .streamed import BUDGET, StreamedTensor

BLOCK = 32
# Activations of a product are rounded to 8 bits, as ONNX Runtime GenAI has them on a CPU: several times as fast as
# products in float32.
ACCURACY_LEVEL = 4
_DOMAIN, CODED = "com.microsoft", "MatMulNBits"
Quantiser = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def quantiser(block: int = BLOCK) -> Quantiser:
    """ONNX Runtime's quantiser: from a matrix [inputs, outputs] to codes, scales and zero points of its outputs.

    Importing it switches on the log of all libraries, which is undone.

    Args:
        block: inputs that share a scale; 16, 32, 64, 128 or 256.

    Raises:
        UsageError: it is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    except ImportError as error:
        raise UsageError(
            f"ONNX Runtime's quantiser cannot be imported: {error}.", "Install ONNX Runtime 1.22 or later."
        ) from None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=4)
    made: Quantiser = DefaultWeightOnlyQuantizer(config).qbits_block_quant
    return made


def quantise(model: ir.Model, block: int = BLOCK) -> None:
    """Let every product with a constant matrix read codes, in place; they are made when the graph is written.

    Args:
        block: inputs that share a scale; 16, 32, 64, 128 or 256.

    Raises:
        UsageError: the quantiser is not installed.
        UnsupportedGraph: there is no such product.
    """
    QuantisePass(block).run(model)


class QuantisePass(GraphPass):
    """requires: a product with a constant matrix.
    ensures: none is left, as many products with codes are there instead, and inputs and outputs are those before.
    """

    def __init__(self, block: int = BLOCK) -> None:
        super().__init__()
        self.block, self.quantiser, self._products = block, quantiser(block), 0

    def requires(self, model: ir.Model) -> None:
        self._products = len(_products(model.graph))
        if not self._products:
            raise UnsupportedGraph("The decoder has no constant weight to quantise.", "Export it in fp32 or fp16.")
        self.note_interface(model)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        graph, read = model.graph, dict[ir.Value, list[ir.Value]]()
        for node in _products(graph):
            matrix = node.inputs[1]
            assert matrix is not None and matrix.const_value is not None
            if matrix not in read:
                read[matrix] = self._codes(matrix)
                for value in read[matrix]:
                    graph.register_initializer(value)
            inputs, outputs = matrix.const_value.shape.numpy()
            sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": self.block}
            new = ir.node(
                CODED,
                [node.inputs[0], *read[matrix]],
                sizes | {"accuracy_level": ACCURACY_LEVEL},
                domain=_DOMAIN,
                name=f"{node.name}_Q4" if node.name else None,
            )
            ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
            if not matrix.uses():
                graph.initializers.pop(str(matrix.name))
        graph.opset_imports[_DOMAIN] = 1

    def _codes(self, matrix: ir.Value) -> list[ir.Value]:
        assert matrix.const_value is not None
        codes = _Codes(matrix.const_value, self.quantiser, self.block)
        made = codes.packed(f"{matrix.name}_Q4"), codes.scales(f"{matrix.name}_scales")
        return [ir.val(str(one.name), one.dtype, one.shape.numpy(), const_value=one) for one in made]

    def ensures(self, model: ir.Model) -> None:
        self.ensure_interface(model, "4-bit weights")
        self.ensure_checker(model, "4-bit weights")
        coded = sum(node.op_type == CODED for node in model.graph)
        if (left := len(_products(model.graph))) or coded < self._products:
            raise broken(f"Of {self._products} products, {coded} read codes and {left} still a matrix")


def _products(graph: ir.Graph) -> list[ir.Node]:
    """Products with a constant matrix."""
    matrices = {node: node.inputs[1] for node in graph if node.op_type == "MatMul"}
    tensors = {node: matrix.const_value for node, matrix in matrices.items() if matrix is not None}
    return [node for node, tensor in tensors.items() if tensor is not None and len(tensor.shape) == 2]


class _Codes:
    """Codes and scales of one matrix. They are made together: while the former are written, the latter are kept."""

    def __init__(self, matrix: ir.TensorProtocol, quantise_part: Quantiser, block: int) -> None:
        self.matrix, self.quantise_part = matrix, quantise_part
        inputs, self.outputs = matrix.shape.numpy()
        self.inputs, self.blocks, self.size = inputs, -(-inputs // block), block // 2
        self.kept: list[np.ndarray] = []

    def packed(self, name: str) -> ir.TensorProtocol:
        """[outputs, blocks, bytes of a block]."""
        return _Made(self._write_codes, ir.DataType.UINT8, (self.outputs, self.blocks, self.size), name)

    def scales(self, name: str) -> ir.TensorProtocol:
        """[outputs · blocks]."""
        return _Made(self._write_scales, self.matrix.dtype, (self.outputs, self.blocks), name)

    def _write_codes(self) -> Iterator[np.ndarray]:
        self.kept = []
        for codes, scales in self._parts():
            self.kept.append(scales)
            yield codes

    def _write_scales(self) -> Iterator[np.ndarray]:
        kept, self.kept = self.kept, []
        yield from kept or (scales for _, scales in self._parts())

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = max(1, BUDGET // (4 * 4 * self.inputs))  # what is read, cast, turned around and padded
        turned = isinstance(self.matrix, StreamedTensor) and self.matrix.transposed
        whole = None if turned else self.matrix.numpy()  # a memory map, unless it was never a row of a weight
        for start in range(0, self.outputs, step):
            stop = min(start + step, self.outputs)
            if whole is None:
                assert isinstance(self.matrix, StreamedTensor)
                part = self.matrix.rows(start, stop).T
            else:
                part = whole[:, start:stop]
            codes, scales, _ = self.quantise_part(np.ascontiguousarray(part))
            yield codes, scales


class _Made(ir.LazyTensor):
    """A tensor that comes in parts, in order."""

    __slots__ = ("parts",)

    def __init__(
        self, parts: Callable[[], Iterator[np.ndarray]], dtype: ir.DataType, shape: tuple[int, ...], name: str
    ) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.parts = parts

    def _whole(self) -> ir.TensorProtocol:
        array = np.concatenate(list(self.parts()))
        return ir.tensor(array.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        for part in self.parts():
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
