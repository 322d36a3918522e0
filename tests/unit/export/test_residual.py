"""The residual stream is found by structure, and whatever is not understood is refused with a reason."""

import numpy as np
import onnx_ir as ir
import pytest

from safetykit.adapters.errors import UnsupportedGraph
from safetykit.export.surgery.residual import find_residual_stream, head_output

LAYERS = 3


@pytest.fixture
def decoder(base_folder) -> ir.Model:
    return ir.load(base_folder / "decoder.onnx")


def addition(left: ir.Value, right: ir.Value, shape=("batch", "sequence", 8)) -> ir.Value:
    node = ir.node("Add", [left, right])
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(shape), ir.DataType.FLOAT
    return node.outputs[0]


def branch(value: ir.Value, kv: ir.Value | None = None) -> ir.Value:
    """Something computed from ``value``, reading a cache or not."""
    node = ir.node("Mul", [value, kv if kv is not None else value])
    node.outputs[0].shape, node.outputs[0].dtype = value.shape, ir.DataType.FLOAT
    return node.outputs[0]


def toy(build) -> ir.Model:
    """A graph whose logits ``build(hidden, cache)`` makes; whatever else that reads is an input too."""
    hidden = ir.val("inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", 8])
    cache = ir.val("past_key_values.0.key", ir.DataType.FLOAT, ["batch", "sequence", 8])
    logits = build(hidden, cache)
    logits.name = "logits"
    nodes, pending = [], [logits]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in nodes:
            nodes.append(node)
            pending.extend(value for value in node.inputs if value is not None)
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    inputs = [value for value in read if value.producer() is None]
    graph = ir.Graph(inputs, [logits], nodes=nodes, opset_imports={"": 20}, name="toy")
    graph.sort()
    return ir.Model(graph, ir_version=10)


def test_every_layer_has_an_attention_and_an_mlp_step(decoder):
    stream = find_residual_stream(decoder)
    assert stream.n_layers == LAYERS
    assert stream.base.name == "inputs_embeds"
    assert stream.final_norm is not None


def test_names_do_not_matter(decoder):
    for index, node in enumerate(decoder.graph):
        node.name = f"n{index}"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"v{index}"
    assert find_residual_stream(decoder).n_layers == LAYERS


def test_operand_order_does_not_matter(decoder):
    for step in find_residual_stream(decoder).steps:
        first, second = step.node.inputs
        step.node.replace_input_with(0, second)
        step.node.replace_input_with(1, first)
    assert [step.residual for step in find_residual_stream(decoder).steps] == [1] * (2 * LAYERS)


def test_a_plain_block_is_a_stream():
    def build(x, kv):
        after = addition(x, branch(x, kv))
        return addition(after, branch(after))

    assert find_residual_stream(toy(build)).n_layers == 1


def test_a_fused_block_is_a_stream():
    def norm(left, right):
        node = ir.node("SkipSimplifiedLayerNormalization", [left, right], domain="com.microsoft", num_outputs=4)
        for value in node.outputs:
            value.shape, value.dtype = left.shape, ir.DataType.FLOAT
        return node.outputs[0], node.outputs[3]

    def build(x, kv):
        normed, total = norm(x, branch(x, kv))
        return norm(branch(normed), total)[0]

    stream = find_residual_stream(toy(build))
    assert [(step.fused, step.residual) for step in stream.steps] == [(True, 0), (True, 1)]


def test_a_vision_encoder_is_refused(base_folder):
    with pytest.raises(UnsupportedGraph, match="no inputs past_key_values"):
        find_residual_stream(ir.load(base_folder / "vision_encoder.onnx"))


@pytest.mark.parametrize("mlp", [branch, lambda x: addition(branch(x), branch(x))])
def test_an_mlp_beside_its_attention_is_a_step(mlp):
    """Both read what enters the layer (Cohere); the sum is written attention first."""

    def build(x, kv):
        for at in range(2):
            kv = kv if not at else ir.val(f"past_key_values.{at}.key", ir.DataType.FLOAT, x.shape)
            x = addition(addition(x, branch(x, kv)), mlp(x))
        return branch(x)

    stream = find_residual_stream(toy(build))
    assert stream.n_layers == 2
    for attention, beside in zip(stream.steps[::2], stream.steps[1::2], strict=True):
        assert attention.source is beside.source is attention.operand(attention.residual)


def test_what_is_added_between_layers_is_no_step_of_the_stream():
    """Features of pictures join the stream after a layer (Qwen3-VL), computed from neither stream nor cache."""
    after = []

    def build(x, kv):
        split = ir.node("Split", [ir.val("features", ir.DataType.FLOAT, x.shape)], num_outputs=2)
        for features in split.outputs:
            features.shape, features.dtype = x.shape, ir.DataType.FLOAT
        for features in split.outputs:
            attended = addition(x, branch(x, kv))
            after.append(addition(attended, branch(attended)))
            x, kv = addition(features, after[-1]), ir.val("past_key_values.1.key", ir.DataType.FLOAT, x.shape)
        return branch(x)

    stream = find_residual_stream(toy(build))
    assert stream.n_layers == 2
    assert [step.node.outputs[0] for step in stream.steps[1::2]] == after


def test_an_attention_that_is_added_after_its_mlp_is_refused():
    def build(x, kv):
        return addition(addition(x, branch(x)), branch(x, kv))

    with pytest.raises(
        UnsupportedGraph, match="should be the attention of layer 0, but reads the KV cache of no layer"
    ):
        find_residual_stream(toy(build))


def test_a_missing_addition_is_refused():
    with pytest.raises(UnsupportedGraph, match="found 1 residual additions, not 2"):
        find_residual_stream(toy(lambda x, kv: addition(x, branch(x, kv))))


def test_a_block_that_starts_with_its_mlp_is_refused():
    def build(x, kv):
        after = addition(x, branch(x))
        return addition(after, branch(after, kv))

    with pytest.raises(UnsupportedGraph, match="should be the attention of layer 0"):
        find_residual_stream(toy(build))


def test_swapped_layers_are_refused(decoder):
    inputs = {value.name: value for value in decoder.graph.inputs}
    inputs["past_key_values.0.key"].name, inputs["past_key_values.1.key"].name = (
        "past_key_values.1.key",
        "past_key_values.0.key",
    )
    with pytest.raises(UnsupportedGraph, match="attention of layer 0"):
        find_residual_stream(decoder)


def test_the_head_gives_the_logits_before_a_soft_cap(decoder):
    (logits, *_), cap = decoder.graph.outputs, ir.val("cap", const_value=ir.tensor(np.float32(30)))
    decoder.graph.register_initializer(cap)
    assert head_output(logits) is logits
    capped = logits
    for op, more in (("Div", [cap]), ("Tanh", []), ("Mul", [cap])):
        node = ir.node(op, [capped, *more])
        decoder.graph.append(node)
        (capped,) = node.outputs
    assert head_output(capped) is logits


def test_a_graph_without_logits_is_refused(decoder):
    decoder.graph.outputs[0].name = "scores"
    with pytest.raises(UnsupportedGraph, match="no output `logits`"):
        find_residual_stream(decoder)


def test_control_flow_is_refused(decoder):
    body = ir.Graph([], [], nodes=[], name="body")
    decoder.graph.append(ir.node("If", [decoder.graph.inputs[0]], {"then_branch": body, "else_branch": body.clone()}))
    with pytest.raises(UnsupportedGraph, match="control flow"):
        find_residual_stream(decoder)
