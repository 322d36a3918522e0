"""Small changes to finished graphs that other runtimes need, each a pass; weights are never touched."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph
from ..names import IMAGE_FEATURES, INPUTS_EMBEDS, own
from ..passes import GraphPass, broken
from ..surgery.building import GraphBuilder
from .values import input_of, output_of, replace_input, replace_output, shape_of, token_ids_of


def number_phases(model: ir.Model, name: str) -> None:
    """Replace an int64 input [batch, sequence] by 0 in a call without a past and 1 in all others, in place."""
    if any(value.name == name for value in model.graph.inputs):
        PhasesPass(name).run(model)


class PhasesPass(GraphPass):
    """requires: the decoder reads the input, and embeddings. ensures: the input is gone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def requires(self, model: ir.Model) -> None:
        input_of(model, self.name, "decoder")
        shape_of(input_of(model, INPUTS_EMBEDS, "decoder"))

    def change(self, model: ir.Model) -> None:
        builder, embeds = GraphBuilder(model), input_of(model, INPUTS_EMBEDS, "decoder")
        nothing = builder.constant(own("phase.nothing"), np.array(0, np.int64))
        later = builder.node("Greater", [builder.past_length(), nothing], ir.DataType.BOOL, [])
        size = builder.node("Shape", [embeds], ir.DataType.INT64, [2], {"start": 0, "end": 2})
        phases = builder.node("Expand", [later, size], ir.DataType.BOOL, shape_of(embeds)[:-1])
        replace_input(builder, input_of(model, self.name, "decoder"), phases)

    def ensures(self, model: ir.Model) -> None:
        if any(value.name == self.name for value in model.graph.inputs):
            raise broken(f"The decoder still reads `{self.name}`")


def rename_axis(model: ir.Model, old: str, new: str) -> None:
    """Give a symbolic axis of all inputs and outputs, and of the values between, another name."""
    if old in _symbols(model):
        RenameAxisPass(old, new).run(model)


class RenameAxisPass(GraphPass):
    """requires: some axis has the old name. ensures: none has it, and one the new name."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__()
        self.old, self.new = old, new

    def requires(self, model: ir.Model) -> None:
        if self.old not in _symbols(model):
            raise UnsupportedGraph(f"No axis is called {self.old!r}.", "Export the base graphs again.")

    def change(self, model: ir.Model) -> None:
        for value in _values(model):
            if value.shape is not None and any(_symbol(size) == self.old for size in value.shape):
                value.shape = ir.Shape([self.new if _symbol(size) == self.old else size for size in value.shape])

    def ensures(self, model: ir.Model) -> None:
        if self.old in (found := _symbols(model)) or self.new not in found:
            raise broken(f"The axis {self.old!r} is not called {self.new!r}")


def _values(model: ir.Model) -> list[ir.Value]:
    inner = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *model.graph.outputs, *inner]


def _symbols(model: ir.Model) -> set[str | None]:
    return {_symbol(size) for value in _values(model) if value.shape is not None for size in value.shape}


def flatten_features(model: ir.Model) -> ir.Value:
    """Let a vision encoder give ``image_features`` as [image_tokens, d], picture after picture, in place.

    Raises:
        UnsupportedGraph: the graph has no image features.
    """
    if len(shape_of(output_of(model, IMAGE_FEATURES))) != 2:
        FlattenPass().run(model)
    return output_of(model, IMAGE_FEATURES)


class FlattenPass(GraphPass):
    """requires: the graph gives image features of stated width. ensures: they are of rank 2 and as wide."""

    def __init__(self) -> None:
        super().__init__()
        self._width: int | str = 0

    def requires(self, model: ir.Model) -> None:
        self._width = shape_of(output_of(model, IMAGE_FEATURES))[-1]

    def change(self, model: ir.Model) -> None:
        builder, features = GraphBuilder(model), output_of(model, IMAGE_FEATURES)
        flat = builder.constant(own("flat"), np.array([-1, self._width], np.int64))
        rows = builder.node("Reshape", [features, flat], features.dtype, ["image_tokens", self._width])
        replace_output(model, features, rows, "flat")

    def ensures(self, model: ir.Model) -> None:
        if shape_of(output_of(model, IMAGE_FEATURES)) != ["image_tokens", self._width]:
            raise broken(f"The output `{IMAGE_FEATURES}` is not [image_tokens, {self._width}]")


def merge_features(model: ir.Model, image_token_id: int, features: ir.Value) -> None:
    """Let the token embedding put ``features`` at the image tokens itself, in place.

    Args:
        features: the new graph input, [image_tokens, d], in the order of the image tokens. There must be as many as
            image tokens, or none at all, which leaves the tokens' own embeddings; else the graph fails.

    Raises:
        UnsupportedGraph: the graph has no embeddings or no token ids.
    """
    MergeFeaturesPass(image_token_id, features).run(model)


class MergeFeaturesPass(GraphPass):
    """requires: the graph reads token ids and gives embeddings. ensures: it reads the features, and its embeddings have
    the shape that they had.
    """

    def __init__(self, image_token_id: int, features: ir.Value) -> None:
        super().__init__()
        self.image_token_id, self.features = image_token_id, features
        self._shape: list[int | str] = []

    def requires(self, model: ir.Model) -> None:
        token_ids_of(model)
        self._shape = shape_of(output_of(model, INPUTS_EMBEDS))

    def change(self, model: ir.Model) -> None:
        builder, embeds, ids = GraphBuilder(model), output_of(model, INPUTS_EMBEDS), token_ids_of(model)
        assert ids.dtype is not None
        model.graph.inputs.append(self.features)
        token = builder.constant(own("merge.token"), np.array(self.image_token_id, ids.dtype.numpy()))
        found = builder.node("Equal", [ids, token], ir.DataType.BOOL, ids.shape)
        places = builder.node("NonZero", [found], ir.DataType.INT64, [2, "image_tokens"])
        indices = builder.node("Transpose", [places], ir.DataType.INT64, ["image_tokens", 2], {"perm": [1, 0]})
        zero, one = (builder.constant(own(f"merge.{number}"), np.array([number], np.int64)) for number in (0, 1))
        everything = builder.constant(own("merge.all"), np.array([np.iinfo(np.int64).max], np.int64))
        given = builder.node("Shape", [self.features], ir.DataType.INT64, [1], {"start": 0, "end": 1})
        nothing = builder.node("Less", [given, one], ir.DataType.BOOL, [1])
        end = builder.node("Where", [nothing, zero, everything], ir.DataType.INT64, [1])
        indices = builder.node("Slice", [indices, zero, end, zero], ir.DataType.INT64, ["image_tokens", 2])
        merged = builder.node("ScatterND", [embeds, indices, self.features], embeds.dtype, embeds.shape)
        replace_output(model, embeds, merged, "merge")

    def ensures(self, model: ir.Model) -> None:
        if not (self.features.is_graph_input() and self.features.uses()):
            raise broken("The token embedding does not read the features")
        if shape_of(output_of(model, INPUTS_EMBEDS)) != self._shape:
            raise broken(f"The output `{INPUTS_EMBEDS}` has another shape")


def relocate(model: ir.Model, names: Mapping[str, str]) -> None:
    """Let weights that lie in other files be looked for under other names; the bytes are the same.

    Args:
        names: old name of a data file → new one, relative to where the graph will lie.

    Raises:
        UnsupportedGraph: a weight lies in a file that is not named.
    """
    RelocatePass(names).run(model)


class RelocatePass(GraphPass):
    """requires: every weight outside the graph lies in a file that is named. ensures: it lies in that file's new name,
    at the same bytes.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = dict(names)
        self._places: dict[str, tuple[str, int | None, int | None]] = {}

    def requires(self, model: ir.Model) -> None:
        self._places = _external_places(model)
        for location, _, _ in self._places.values():
            if location not in self.names:
                raise UnsupportedGraph(f"A weight lies in {location}, which is unknown.", "Export the model again.")

    def change(self, model: ir.Model) -> None:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                assert tensor.shape is not None
                value.const_value = ir.ExternalTensor(
                    self.names[str(tensor.location)],
                    tensor.offset,
                    tensor.length,
                    tensor.dtype,
                    shape=tensor.shape,
                    name=str(tensor.name),
                    base_dir=tensor.base_dir,
                )

    def ensures(self, model: ir.Model) -> None:
        wanted = {name: (self.names[location], *place) for name, (location, *place) in self._places.items()}
        if _external_places(model) != wanted:
            raise broken("A weight is looked for at another place than it was")


def _external_places(model: ir.Model) -> dict[str, tuple[str, int | None, int | None]]:
    """File, offset and length of each weight that lies outside the graph."""
    tensors = {str(value.name): value.const_value for value in model.graph.initializers.values()}
    return {
        name: (str(tensor.location), tensor.offset, tensor.length)
        for name, tensor in tensors.items()
        if isinstance(tensor, ir.ExternalTensor)
    }


def _symbol(size: object) -> str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else None
