"""Weight matrices as a graph holds them: plain, transposed, packed with others, or quantised.

MatMulNBits: y = x Wᵀ, W[n, k] = (code − zero point) · scale of its block of ``block_size`` columns, with b-bit codes
packed low bits first and a zero point of 2^(b−1) where none is given.
DequantizeLinear and MatMulInteger: (code − zero point) · scale, per matrix, row, column or block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float

# Operators that read weights as codes.
QUANTISED = (
    "MatMulNBits",
    "DequantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "MatMulBnb4",
    "GatherBlockQuantized",
)
_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger")
_BETWEEN = ("Transpose", "Cast", "Identity", "DequantizeLinear")
# How far a weight's rounded self may be, as a share of its size; how far it is at most where no other can be nearer;
# how many of its rows are looked at, and how many rows of a matrix are read at once.
_ALIKE, _SAME, _GLANCE, _CHUNK = 0.5, 0.2, 8, 4096
Rows = Sequence[int] | np.ndarray | slice


@dataclass(frozen=True)
class Dequantised:
    """Some rows of a matrix.

    Attributes:
        values: [rows, inputs] float32.
        step: distance of neighbouring codes, same shape; None for a matrix that is not quantised.
        clipped: where the code is the first or the last, so that the nearest value may lie beyond it.
    """

    values: Float[np.ndarray, "rows inputs"]
    step: np.ndarray | None = None
    clipped: np.ndarray | None = None

    def __getitem__(self, rows: Rows) -> Dequantised:
        return Dequantised(*(None if part is None else part[rows] for part in (self.values, self.step, self.clipped)))

    @property
    def T(self) -> Dequantised:
        """Transposed."""
        return Dequantised(*(None if part is None else part.T for part in (self.values, self.step, self.clipped)))


@dataclass(frozen=True)
class Matrix:
    """The constant weight of one product, as [outputs, inputs].

    Attributes:
        node: the product.
        name: of the initializer.
        shape: outputs and inputs.
        dtype: of its values, or of its scales.
        bits: of a code; None if it is not quantised.
    """

    node: ir.Node
    name: str
    shape: tuple[int, int]
    dtype: np.dtype
    bits: int | None = None

    def rows(self, wanted: Rows = slice(None)) -> Dequantised:
        """Read rows, dequantised."""
        if self.node.op_type == "MatMulNBits":
            return _unpacked(self.node, wanted)
        if self.node.op_type == "MatMulInteger":
            value, _ = _constant(self.node.inputs[1])
            zero = _array(self.node, 3)
            scale = _integer_scale(self.node)
            assert value is not None and value.const_value is not None and scale is not None
            return _affine(value.const_value.numpy(), scale, zero).T[wanted]
        transposed = self.node.op_type == "Gemm" and _flag(self.node, "transB", 0)
        return _evaluated(self.node.inputs[1], wanted, 0 if transposed else 1)


def locate(
    matrices: Iterable[Matrix], shape: tuple[int, int], rows: Callable[[np.ndarray], np.ndarray]
) -> tuple[Matrix, int] | None:
    """The matrix that holds a weight, maybe among others packed along its outputs, and its first row there.

    Args:
        matrices: candidates, the likeliest first: none is read behind one that is the weight beyond doubt.
        shape: of the weight, [outputs, inputs].
        rows: gives rows of the weight.

    Returns:
        The nearest candidate, if it is near at all: rounding to 4 bits moves a weight by about a tenth of its size,
        and another weight is √2 of it away.
    """
    wanted = spread(shape[0], _GLANCE)
    ours = rows(wanted)
    size = float(np.linalg.norm(ours))
    best, nearest = None, _ALIKE * size
    for matrix in matrices:
        if matrix.shape[1] != shape[1]:
            continue
        for places in _chunks(range(0, matrix.shape[0] - shape[0] + 1, math.gcd(shape[0], matrix.shape[0]))):
            read = matrix.rows(np.add.outer(places, wanted).ravel()).values.reshape(len(places), *ours.shape)
            distances = np.linalg.norm(read - ours, axis=(1, 2))
            if distances.min() < nearest:
                best, nearest = (matrix, places[int(distances.argmin())]), float(distances.min())
        if nearest < _SAME * size:
            break
    return best


def _chunks(places: range) -> Iterator[range]:
    """A matrix's possible first rows, as many at a time as can be read at once."""
    count = _CHUNK // _GLANCE
    for start in range(0, len(places), count):
        yield places[start : start + count]


def spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of ``count`` indices, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def matrix_of(node: ir.Node) -> Matrix | None:
    """The constant matrix of a product; None when it has none that can be read."""
    if node.op_type not in _PRODUCTS or len(node.inputs) < 2:
        return None
    value, chain = _constant(node.inputs[1])
    if value is None or value.const_value is None:
        return None
    name, tensor = str(value.name), value.const_value
    if node.op_type == "MatMulNBits":
        scales, reordered = _array(node, 2), len(node.inputs) > 4 and node.inputs[4] is not None
        if scales is None or reordered:
            return None
        return Matrix(node, name, (_flag(node, "N"), _flag(node, "K")), scales.dtype, _flag(node, "bits", 4))
    if len(tensor.shape) != 2:
        return None
    rows, columns = tensor.shape.numpy()
    if sum(step.op_type == "Transpose" for step in chain) % 2 != (node.op_type == "Gemm" and _flag(node, "transB", 0)):
        rows, columns = columns, rows
    if node.op_type == "MatMulInteger":
        found = _integer_scale(node) is not None
        return Matrix(node, name, (columns, rows), np.dtype(np.float32), 8) if found else None
    scaled = next((step for step in chain if step.op_type == "DequantizeLinear"), None)
    if scaled is not None:
        scale = _array(scaled, 1)
        bits = 4 if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8
        return None if scale is None else Matrix(node, name, (columns, rows), scale.dtype, bits)
    if not tensor.dtype.is_floating_point():
        return None
    return Matrix(node, name, (columns, rows), tensor.dtype.numpy())


def _constant(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """The constant behind transposes, casts and dequantisation, and these nodes, the first first."""
    chain: list[ir.Node] = []
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _BETWEEN:
            return None, []
        chain.insert(0, node)
        value = node.inputs[0]
    return value, chain


def _array(node: ir.Node, index: int) -> np.ndarray | None:
    value, _ = _constant(node.inputs[index] if index < len(node.inputs) else None)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _flag(node: ir.Node, name: str, default: int | None = None) -> int:
    attribute = node.attributes.get(name)
    if attribute is None:
        assert default is not None, name
        return default
    return attribute.as_int()


def _evaluated(source: ir.Value | None, wanted: Rows, axis: int) -> Dequantised:
    """Rows, or for ``axis`` 1 columns as rows, of a constant behind transposes, casts and dequantisation."""
    value, chain = _constant(source)
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy()
    if not any(node.op_type == "DequantizeLinear" for node in chain):  # only what is wanted is read and cast
        turned = (axis + sum(node.op_type == "Transpose" for node in chain)) % 2
        return Dequantised((array.T if turned else array)[wanted].astype(np.float32))
    found = Dequantised(array)
    for node in chain:
        if node.op_type == "Transpose":
            found = found.T
        elif node.op_type == "DequantizeLinear":
            scale, zero = _array(node, 1), _array(node, 2)
            assert scale is not None
            size = _flag(node, "block_size", 0)
            found = _affine(array, *(_spread(part, array, _flag(node, "axis", 1), size) for part in (scale, zero)))
    found = (found.T if axis else found)[wanted]
    return Dequantised(found.values.astype(np.float32), found.step, found.clipped)


def _spread(part: np.ndarray | None, like: np.ndarray, axis: int, size: int) -> np.ndarray | None:
    """Scales or zero points with one entry per value, or such that they broadcast."""
    if part is None or part.ndim == 0:
        return part
    if part.ndim == 1:
        others = tuple(at for at in range(like.ndim) if at != axis % like.ndim)
        return np.expand_dims(part, others) if part.size > 1 else part
    return np.repeat(part, size, axis=axis).take(range(like.shape[axis]), axis=axis)


def _affine(codes: np.ndarray, scale: np.ndarray | None, zero: np.ndarray | None) -> Dequantised:
    assert scale is not None
    lowest, highest = _code_range(codes)
    numbers = codes.astype(np.float32)
    values = (numbers - (0 if zero is None else zero.astype(np.float32))) * scale.astype(np.float32)
    step = np.broadcast_to(np.abs(scale.astype(np.float32)), values.shape)
    return Dequantised(values, step, (numbers <= lowest) | (numbers >= highest))


def _code_range(codes: np.ndarray) -> tuple[int, int]:
    names = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-127, 127), "uint8": (0, 255)}
    return names[codes.dtype.name]


def _integer_scale(node: ir.Node) -> np.ndarray | None:
    """Scale of a MatMulInteger's weight: its product is cast and multiplied with (scale of x) · (scale of weight)."""
    for cast, _ in node.outputs[0].uses():
        for product, at in cast.outputs[0].uses() if cast.op_type == "Cast" else ():
            other = product.inputs[1 - at] if product.op_type == "Mul" else None
            scales = other.producer() if other is not None else None
            if scales is not None and scales.op_type == "Mul":
                found = [array for index in (0, 1) if (array := _array(scales, index)) is not None]
                if len(found) == 1:
                    return found[0]
    return None


def _unpacked(node: ir.Node, wanted: Rows) -> Dequantised:
    codes, scales, zeros = (_array(node, index) for index in (1, 2, 3))
    assert codes is not None and scales is not None
    rows, inputs = _flag(node, "N"), _flag(node, "K")
    bits, size = _flag(node, "bits", 4), _flag(node, "block_size")
    blocks = -(-inputs // size)
    kept = _codes(codes.reshape(rows, blocks, -1)[wanted], bits)[..., :size].astype(np.float32)
    scale = scales.reshape(rows, blocks)[wanted].astype(np.float32)[..., None]
    zero: np.ndarray | float = float(2 ** (bits - 1))
    if zeros is not None:
        if zeros.dtype == np.uint8:
            zeros = _codes(zeros.reshape(rows, -1), bits)[:, :blocks]
        zero = zeros.reshape(rows, blocks)[wanted].astype(np.float32)[..., None]
    values = (kept - zero) * scale
    step = np.broadcast_to(np.abs(scale), values.shape)
    clipped = (kept == 0) | (kept == 2**bits - 1)
    return Dequantised(*(part.reshape(len(part), -1)[:, :inputs] for part in (values, step, clipped)))


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes from bytes along the last axis, low bits first."""
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    codes = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)
