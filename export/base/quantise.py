"""int4: our own decoder, quantised by ONNX Runtime's quantisers before any adapter goes in.

Every matrix product with a constant weight becomes a ``MatMulNBits``: weights rounded to 4 bits in blocks of inputs,
w ≈ (code − zero point) · scale with one scale per block; activations are rounded to 8 bits on their way into a product.
The zero point is 8 (symmetric) or one per block (asymmetric, and k-quant, which searches for the scale and zero point
that err least where weights are large). The head may have 8 bits. Norms, rotary tables, vision encoder and embedding
stay as they are. Adapter ops are full precision by construction: they do not exist yet.

Codes are made while the data file is written, some outputs of one matrix at a time: a block lies within one output, so
that the codes do not depend on how many are made at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph, UsageError
from ..names import LOGITS
from ..passes import GraphPass, broken
from .int4 import Int4Options
from .streamed import BUDGET, StreamedTensor

# Activations of a product are rounded to 8 bits, as ONNX Runtime GenAI has them on a CPU: several times as fast as
# products in float32.
ACCURACY_LEVEL = 4
_DOMAIN, CODED = "com.microsoft", "MatMulNBits"
_SEARCHED = 2**20  # weights that k-quant looks at at once: its twenty trials hold several copies of them


class Codes(NamedTuple):
    """What a matrix becomes, or some outputs of it.

    Attributes:
        packed: [outputs, blocks, bytes of a block], low bits first.
        scales: [outputs, blocks].
        zeros: [outputs, bytes of all zero points], packed alike; None where all are in the middle.
    """

    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


Quantiser = Callable[[np.ndarray], Codes]  # of a matrix [inputs, outputs]


def quantiser(options: Int4Options | None = None, bits: int = 4) -> Quantiser:
    """ONNX Runtime's quantiser of a matrix [inputs, outputs].

    Raises:
        UsageError: it is not installed.
    """
    options = options or Int4Options()
    with _quiet():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import (
                DefaultWeightOnlyQuantConfig,
                DefaultWeightOnlyQuantizer,
            )
            from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu
        except ImportError as error:
            raise UsageError(
                f"ONNX Runtime's quantiser cannot be imported: {error}.", "Install ONNX Runtime 1.22 or later."
            ) from None
    size, symmetric = options.block_size, options.rounding == "symmetric"
    config = DefaultWeightOnlyQuantConfig(block_size=size, is_symmetric=symmetric, bits=bits)
    by_range = DefaultWeightOnlyQuantizer(config).qbits_block_quant

    def plain(matrix: np.ndarray) -> Codes:
        packed, scales, zeros = by_range(np.ascontiguousarray(matrix))
        return Codes(packed, scales, None if symmetric else zeros)

    def searched(matrix: np.ndarray) -> Codes:
        inputs, outputs = matrix.shape
        blocks = -(-inputs // size)
        rows = np.zeros((outputs, blocks * size), np.float32)
        rows[:, :inputs] = matrix.T
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal codes have no best line
            codes, scales, zeros = quant_tensor_k_quant_cpu(rows, bits, size)
        packed = _packed(codes.astype(np.uint8), bits).reshape(outputs, blocks, -1)
        found = Codes(
            packed, scales.reshape(outputs, blocks).astype(matrix.dtype), _packed(zeros.reshape(outputs, blocks), bits)
        )
        return _with_range_where_one_signed(found, plain(matrix), rows.reshape(outputs, blocks, size), bits)

    return searched if options.rounding == "k-quant" else plain


def _with_range_where_one_signed(found: Codes, other: Codes, blocks: np.ndarray, bits: int) -> Codes:
    """Blocks whose weights have one sign by their range, which includes 0: the search puts their zero point beyond the
    codes, and clips it."""
    one_signed: np.ndarray = np.asarray((blocks > 0).all(-1) | (blocks < 0).all(-1))
    assert found.zeros is not None and other.zeros is not None
    count = blocks.shape[1]
    zeros = np.where(one_signed, _unpacked(other.zeros, bits, count), _unpacked(found.zeros, bits, count))
    return Codes(
        np.where(one_signed[..., None], other.packed, found.packed),
        np.where(one_signed, other.scales, found.scales),
        _packed(zeros, bits),
    )


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as bytes along the last axis, low bits first; what is missing of the last byte is the middle."""
    if bits == 8:
        return codes
    missing = codes.shape[-1] % 2
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)], constant_values=8)
    packed: np.ndarray = padded[..., ::2] | (padded[..., 1::2] << 4)
    return packed


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :count]


@contextmanager
def _quiet() -> Iterator[None]:
    """Importing the quantiser switches on the log of all libraries, which is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def quantise(model: ir.Model, options: Int4Options | None = None) -> None:
    """Let every product with a constant matrix read codes, in place; they are made when the graph is written.

    Args:
        options: how they are rounded.

    Raises:
        UsageError: the quantiser is not installed.
        UnsupportedGraph: there is no such product.
    """
    QuantisePass(options).run(model)


class QuantisePass(GraphPass):
    """requires: a product with a constant matrix.
    ensures: none is left, as many products with codes are there instead, and inputs and outputs are those before.
    """

    def __init__(self, options: Int4Options | None = None) -> None:
        super().__init__()
        self.options, self._products = options or Int4Options(), 0
        quantiser(self.options)

    def requires(self, model: ir.Model) -> None:
        self._products = len(_products(model.graph))
        if not self._products:
            raise UnsupportedGraph("The decoder has no constant weight to quantise.", "Export it in fp32 or fp16.")
        self.note_interface(model)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        graph, read = model.graph, dict[tuple[ir.Value, int], list[ir.Value]]()
        head = _head(graph)
        for node in _products(graph):
            matrix, bits = node.inputs[1], 8 if node is head and self.options.head_8bit else 4
            assert matrix is not None and matrix.const_value is not None
            if (matrix, bits) not in read:
                read[matrix, bits] = self._codes(matrix, bits)
                for value in read[matrix, bits]:
                    graph.register_initializer(value)
            inputs, outputs = matrix.const_value.shape.numpy()
            sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": self.options.block_size}
            new = ir.node(
                CODED,
                [node.inputs[0], *read[matrix, bits]],
                sizes | {"accuracy_level": ACCURACY_LEVEL},
                domain=_DOMAIN,
                name=f"{node.name}_Q{bits}" if node.name else None,
            )
            ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
            if not matrix.uses():
                graph.initializers.pop(str(matrix.name))
        graph.opset_imports[_DOMAIN] = 1

    def _codes(self, matrix: ir.Value, bits: int) -> list[ir.Value]:
        assert matrix.const_value is not None
        made = _Codes(matrix.const_value, self.options, bits).tensors(matrix.name)
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


def _head(graph: ir.Graph) -> ir.Node | None:
    """The product that gives the logits, behind caps and casts."""
    value = next((one for one in graph.outputs if one.name == LOGITS), None)
    node = value.producer() if value is not None else None
    while node is not None and node.op_type != "MatMul":
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return node


class _Codes:
    """Codes, scales and zero points of one matrix. They are made together: while the first are written, the others are
    kept."""

    def __init__(self, matrix: ir.TensorProtocol, options: Int4Options, bits: int = 4) -> None:
        self.matrix, self.options, self.bits = matrix, options, bits
        self.quantise_part = quantiser(options, bits)
        self.inputs, self.outputs = matrix.shape.numpy()
        self.blocks = -(-self.inputs // options.block_size)
        self.kept: list[Codes] = []

    def tensors(self, name: str | None) -> list[ir.TensorProtocol]:
        """Codes [outputs, blocks, bytes of a block], scales [outputs, blocks] and, if any, zero points."""
        shape, bits = (self.outputs, self.blocks), self.bits
        made: list[ir.TensorProtocol] = [
            _Made(
                self._write_codes, ir.DataType.UINT8, (*shape, self.options.block_size * bits // 8), f"{name}_Q{bits}"
            ),
            _Made(lambda: self._write_kept("scales"), self.matrix.dtype, shape, f"{name}_Q{bits}_scales"),
        ]
        if self.options.rounding != "symmetric":
            packed = (self.outputs, -(-self.blocks * bits // 8))
            made.append(
                _Made(lambda: self._write_kept("zeros"), ir.DataType.UINT8, packed, f"{name}_Q{bits}_zero_points")
            )
        return made

    def _write_codes(self) -> Iterator[np.ndarray]:
        self.kept = []
        for part in self._parts():
            self.kept.append(part._replace(packed=part.packed[:0]))
            yield part.packed

    def _write_kept(self, field: str) -> Iterator[np.ndarray]:
        for part in self.kept or self._parts():
            yield getattr(part, field)
        if field == ("zeros" if self.options.rounding != "symmetric" else "scales"):  # the last to be written
            self.kept = []

    def _parts(self) -> Iterator[Codes]:
        step = max(1, BUDGET // (4 * 4 * self.inputs))  # what is read, cast, turned around and padded
        if self.options.rounding == "k-quant":
            step = max(1, min(step, _SEARCHED // self.inputs))
        turned = isinstance(self.matrix, StreamedTensor) and self.matrix.transposed
        whole = None if turned else self.matrix.numpy()  # a memory map, unless it was never a row of a weight
        for start in range(0, self.outputs, step):
            stop = min(start + step, self.outputs)
            if whole is None:
                assert isinstance(self.matrix, StreamedTensor)
                part = self.matrix.rows(start, stop).T
            else:
                part = whole[:, start:stop]
            yield self.quantise_part(part)


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
