"""Decoder graphs that are as fast as they can be: one attention node a layer, fusable norms, logits as asked for."""

from __future__ import annotations

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.glm4_moe import modeling_glm4_moe
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from safetykit.export.base import attention
from safetykit.export.base.logits import give_all_logits
from safetykit.export.base.simplify import simplify
from safetykit.export.base.specs import decoder_spec
from safetykit.export.base.tracing import export_graph
from safetykit.export.manifest import LAYOUT
from safetykit.export.names import KEPT, LOGITS
from safetykit.export.pipeline.write import attends_in_one_node
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.residual import find_residual_stream
from safetykit.toolkit.families import Family, family_of


@pytest.fixture
def decoder(base_folder) -> ir.Model:
    return ir.load(base_folder / LAYOUT.decoder)


def test_a_layer_attends_by_one_node_and_angles_are_computed_once(vlm, decoder):
    kinds, layers = Counter(node.op_type for node in decoder.graph), vlm.base.n_layers
    assert kinds["GroupQueryAttention"] == layers and kinds["RotaryEmbedding"] == 2 * layers
    assert kinds["Cos"] == kinds["Sin"] == 1
    assert not kinds.keys() & {"Softmax", "Expand", "Where", "Transpose", "Reciprocal"}


def test_a_padded_row_moves_nothing_but_itself(base_folder, requests):
    model = OnnxVLM.from_pretrained(base_folder)
    together = model.prefill_requests(requests)
    for row, request in enumerate(requests):
        alone = model.prefill_requests([request])
        assert np.abs(together.logits[row] - alone.logits[0]).max() < 1e-4
        key = together.past["past_key_values.1.key"][row]
        own = alone.past["past_key_values.1.key"][0]
        assert np.abs(key[:, : own.shape[1]] - own).max() < 1e-4, "the cache keeps a row's tokens first"


def test_logits_of_the_last_position_unless_all_are_asked_for(base_folder, requests):
    model = OnnxVLM.from_pretrained(base_folder)
    last, every = (model.prefill_requests(requests[1:2], all_logits=wanted).logits for wanted in (False, True))
    assert last.shape[1] == 1 < every.shape[1]
    assert np.abs(last[:, -1] - every[:, -1]).max() < 1e-5


def test_all_logits_can_be_had_for_good(decoder):
    stream = find_residual_stream(decoder)
    give_all_logits(decoder)
    assert KEPT not in {value.name for value in decoder.graph.inputs} | set(decoder.graph.initializers)
    logits = next(value for value in decoder.graph.outputs if value.name == LOGITS)
    assert [str(size) for size in logits.shape][:2] == ["batch", "sequence"]
    assert find_residual_stream(decoder).final_norm is stream.final_norm


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_dim": 12}, "heads are 12 wide"),
        ({"token_types": "pictures"}, "some tokens see later ones"),
        ({"decoder_inputs": lambda _: ()}, "takes no positions"),
    ],
)
def test_what_cannot_be_one_node_says_why(vlm, change, reason):
    family = type("Changed", (Family,), {})()
    for name in change.keys() - {"head_dim"}:
        setattr(family, name, change[name])
    text = SimpleNamespace(head_dim=change.get("head_dim", 16))
    config = SimpleNamespace(get_text_config=lambda: text)
    assert reason in family.attention_obstacle(config)
    assert family_of(vlm.model.config).attention_obstacle(vlm.model.config) is None


@pytest.mark.slow
def test_attention_that_the_node_does_not_compute_is_left_to_the_exporter(vlm, monkeypatch):
    family = family_of(vlm.model.config)
    monkeypatch.setattr(attention, "_PLAIN", frozenset())  # as if dropout = 0.0 were a soft cap
    model = copy.deepcopy(vlm.model)
    del model.model.language_model.layers[1:]
    model.config.get_text_config().num_hidden_layers = 1
    kinds = {node.op_type for node in export_graph(decoder_spec(model, family), "fp32").graph}
    assert "Softmax" in kinds and "GroupQueryAttention" not in kinds


def test_only_rotary_embeddings_that_turn_halves_are_one_node():
    assert attention._turns_halves(modeling_llama.apply_rotary_pos_emb)
    assert attention._turns_halves(modeling_qwen2_5_vl.apply_rotary_pos_emb)
    assert not attention._turns_halves(modeling_cohere.apply_rotary_pos_emb)  # neighbours
    assert not attention._turns_halves(modeling_glm.apply_rotary_pos_emb)
    assert attention._turns_halves(modeling_glm4_moe.apply_rotary_pos_emb)  # of some channels, the rest stays


@pytest.mark.parametrize(
    ("precision", "provider", "fused"),
    [
        ("fp32", "CPU", True),
        ("int4", "CPU", True),
        ("fp16", "CUDA", True),
        ("fp32", "CUDA", False),
        ("int4", "CUDA", False),
    ],
)
def test_the_attention_node_takes_the_floats_of_the_provider(precision, provider, fused):
    assert attends_in_one_node(precision, (f"{provider}ExecutionProvider", "CPUExecutionProvider")) == fused


def test_a_norm_divides_by_its_root_and_reshapes_back_are_gone():
    states = ir.val("states", ir.DataType.FLOAT, ["batch", "sequence", 8])
    square = ir.node("Mul", [states, states])
    root = ir.node("Sqrt", square.outputs)
    inverse = ir.node("Reciprocal", root.outputs)
    normed = ir.node("Mul", [states, inverse.outputs[0]])
    sizes = [ir.val(f"shape.{at}", const_value=ir.tensor(np.array(to), name=f"shape.{at}")) for at, to in SHAPES]
    apart = ir.node("Reshape", [normed.outputs[0], sizes[0]])
    turned = ir.node("Transpose", apart.outputs, {"perm": [0, 2, 1, 3]})
    back = ir.node("Transpose", turned.outputs, {"perm": [0, 2, 1, 3]})
    whole = ir.node("Reshape", [back.outputs[0], sizes[1]])
    end = ir.node("Neg", whole.outputs)
    nodes = [square, root, inverse, normed, apart, turned, back, whole, end]
    for node in nodes:
        node.outputs[0].dtype, node.outputs[0].shape = states.dtype, states.shape
    apart.outputs[0].shape = ir.Shape(["batch", "sequence", 2, 4])
    graph = ir.Graph([states], end.outputs, nodes=nodes, initializers=sizes, opset_imports={"": 20})
    simplify(ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph] == ["Mul", "Sqrt", "Div", "Neg"]


SHAPES = ((0, [0, 0, 2, 4]), (1, [0, 0, 8]))
