"""Initializers that are read, cast and turned around while a graph's data file is written.

A graph is traced without weights; :func:`attach` then gives each initializer a tensor that knows where its values lie.
Nothing is read before the file is written, and then at most :data:`BUDGET` bytes at once, so that the memory an export
needs does not depend on the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor, nn

from ...toolkit.model.weights import Weight, chunks
from ..passes import GraphPass, broken

BUDGET = 2**27  # bytes of a tensor that are held while it is written
WeightOf = Callable[[Tensor], Weight]


class StreamedTensor(ir.LazyTensor):
    """A parameter of the model as an initializer.

    Attributes:
        weight: its values.
        transposed: whether the initializer is the matrix transposed.
    """

    __slots__ = ("transposed", "weight")

    def __init__(self, weight: Weight, dtype: ir.DataType, name: str, *, transposed: bool = False) -> None:
        shape = weight.shape[::-1] if transposed else weight.shape
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.weight, self.transposed = weight, transposed

    def turned(self, name: str) -> StreamedTensor:
        """The same matrix transposed."""
        return StreamedTensor(self.weight, self.dtype, name, transposed=not self.transposed)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the parameter itself, whether the initializer is transposed or not, in its type."""
        return self._cast(self.weight.rows(start, stop))

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes, reading a part at a time."""
        for array in self._columns() if self.transposed else map(self._cast, chunks(self.weight)):
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _columns(self) -> Iterator[np.ndarray]:
        """Columns of the parameter as rows, as many at a time as fit; each time all of it is read once."""
        count, width = self.weight.shape
        step = max(1, int(BUDGET // (count * self.dtype.itemsize)))
        for start in range(0, width, step):
            stop = min(start + step, width)
            part = np.empty((stop - start, count), self.dtype.numpy())
            at = 0
            for rows in chunks(self.weight):
                part[:, at : at + len(rows)] = self._cast(rows[:, start:stop]).T
                at += len(rows)
            yield part

    def _whole(self) -> ir.TensorProtocol:
        array = self._cast(self.weight.whole())
        return ir.tensor(np.ascontiguousarray(array.T) if self.transposed else array, dtype=self.dtype, name=self.name)

    def _cast(self, values: Tensor) -> np.ndarray:
        values = values.to(tensor_adapters.to_torch_dtype(self.dtype)).contiguous()
        if values.dtype == torch.bfloat16:
            return values.view(torch.int16).numpy().view(self.dtype.numpy())
        array: np.ndarray = values.numpy()
        return array


def attach(model: ir.Model, module: nn.Module, weight_of: WeightOf) -> None:
    """Give the initializers that stand for parameters of ``module`` their values, by name, in place."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in model.graph.initializers.items():
        if name in parameters:
            assert value.dtype is not None
            value.const_value = StreamedTensor(weight_of(parameters[name]), value.dtype, name)


def fold_transposes(model: ir.Model) -> None:
    """Transpose the matrices that are read through a ``Transpose`` alone as they are written, in place."""
    FoldTransposesPass().run(model)


class FoldTransposesPass(GraphPass):
    """requires: nothing.
    ensures: inputs and outputs are those before, and no streamed matrix is read through one ``Transpose`` alone.
    """

    def requires(self, model: ir.Model) -> None:
        self.note_interface(model)

    def change(self, model: ir.Model) -> None:
        graph = model.graph
        for node in _transposes(graph):
            value, output = node.inputs[0], node.outputs[0]
            assert value is not None and isinstance(value.const_value, StreamedTensor)
            turned = value.const_value.turned(str(output.name))
            new = ir.Value(name=output.name, type=output.type, shape=turned.shape, const_value=turned)
            for reader, index in list(output.uses()):
                reader.replace_input_with(index, new)
            graph.remove(node, safe=True)
            graph.initializers.pop(str(value.name))
            graph.register_initializer(new)

    def ensures(self, model: ir.Model) -> None:
        self.ensure_interface(model, "its matrices transposed as they are written")
        if left := _transposes(model.graph):
            raise broken(f"{len(left)} matrices are still read through a Transpose")


def _transposes(graph: ir.Graph) -> list[ir.Node]:
    """The transpositions that are all that reads a streamed matrix."""
    found = []
    for node in graph:
        value = node.inputs[0] if node.op_type == "Transpose" else None
        if value is None or not isinstance(value.const_value, StreamedTensor) or len(value.uses()) > 1:
            continue
        if not node.outputs[0].is_graph_output() and tuple(node.attributes["perm"].as_ints()) == (1, 0):
            found.append(node)
    return found
