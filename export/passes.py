"""The shape that every change of a graph has: what it requires of the graph, the change, what it ensures afterwards.

In the manner of onnx-ir's own passes, whose machinery runs the three in order. A graph that a pass does not understand
is refused with the reason before anything is changed, never patched on a guess; a result that breaks a promise of the
pass is refused as well.
"""

from __future__ import annotations

from abc import abstractmethod

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, InvariantError, PassResult
from onnx_ir.passes.common import CheckerPass, TopologicalSortPass

from ..adapters.errors import SafetykitError, UnsupportedGraph

Interface = tuple[tuple[str, ...], tuple[str, ...]]  # names of inputs and of outputs


class GraphPass(InPlacePass):
    """A change of one graph, in place."""

    def __init__(self) -> None:
        super().__init__()
        self._standard = False
        self._interface: Interface = ((), ())

    def run(self, model: ir.Model) -> ir.Model:
        """Carry it out and return ``model``.

        Raises:
            UnsupportedGraph: the graph is not what the pass requires, or became what it must not.
            UsageError: what is asked for cannot be.
        """
        try:
            return self(model).model
        except InvariantError as error:  # our own error instead of the machinery's
            cause = error.__cause__
            while cause is not None and not isinstance(cause, SafetykitError):
                cause = cause.__cause__
            if cause is not None:
                raise cause from None
            raise

    def call(self, model: ir.Model) -> PassResult:
        self.change(model)
        TopologicalSortPass()(model)
        return PassResult(model, modified=True)

    @abstractmethod
    def change(self, model: ir.Model) -> None:
        """The change; nodes may be appended in any order."""

    def note_interface(self, model: ir.Model) -> None:
        """Note the names of inputs and outputs."""
        self._interface = interface_of(model)

    def ensure_interface(self, model: ir.Model, change: str) -> None:
        """That inputs and outputs are those that were noted.

        Raises:
            UnsupportedGraph: they are not.
        """
        if interface_of(model) != self._interface:
            raise broken(f"With {change}, the graph has other inputs or outputs")

    def note_checker(self, model: ir.Model) -> None:
        """Note whether the ONNX checker accepts the graph before. One with operators that only ONNX Runtime knows is
        left to its own loading check."""
        self._standard = passes_checker(model)

    def ensure_checker(self, model: ir.Model, change: str) -> None:
        """That the checker still accepts what it accepted.

        Raises:
            UnsupportedGraph: it does not.
        """
        if self._standard and not passes_checker(model):
            raise broken(f"The ONNX checker accepts the graph, but not with {change}")


def interface_of(model: ir.Model) -> Interface:
    """Names of the inputs and outputs of a graph."""
    inputs, outputs = (tuple(str(one.name) for one in some) for some in (model.graph.inputs, model.graph.outputs))
    return inputs, outputs


def broken(what: str) -> UnsupportedGraph:
    """A promise of a pass that does not hold."""
    return UnsupportedGraph(f"{what}.", "Report this graph.")


def passes_checker(model: ir.Model) -> bool:
    """Whether the ONNX checker accepts the graph; ``model`` stays as it is."""
    model = model.clone()
    for value in model.graph.initializers.values():
        # The checker looks for external data in the working directory; the pass drops only large tensors itself.
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= 2**16:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    try:
        CheckerPass()(model)
    except onnx.checker.ValidationError:
        return False
    return True
