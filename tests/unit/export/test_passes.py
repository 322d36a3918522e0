"""Every change of a graph is a pass: it refuses graphs that it does not understand, and keeps its promises.

Graphs are made by hand and small; what passes do to real ones, the tests of each change show.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.artifact.manifest import DetectorInfo
from safetykit.adapters.errors import UnsupportedGraph, UsageError
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.logits import AllLogitsPass, KeepLastLogitsPass
from safetykit.export.base.quantise import QuantisePass
from safetykit.export.base.simplify import SimplifyPass
from safetykit.export.base.streamed import FoldTransposesPass, StreamedTensor
from safetykit.export.layouts.mask_channel import ReadChannelPass, WidenEmbeddingsPass, WidenFeaturesPass
from safetykit.export.layouts.surgery import FlattenPass, MergeFeaturesPass, PhasesPass, RelocatePass, RenameAxisPass
from safetykit.export.manifest import ParameterInfo
from safetykit.export.passes import passes_checker
from safetykit.export.surgery.biases import MergeBiasesPass
from safetykit.export.surgery.detector import DetectorPass, stated_detector
from safetykit.export.surgery.layer_updates import LayerUpdate
from safetykit.export.surgery.lowrank import LowRank, LowRankPass
from safetykit.export.surgery.swappable import OpenPass
from safetykit.export.surgery.updates import UpdatePass
from safetykit.toolkit.model.weights import HeldWeight

D, VOCABULARY = 4, 6
F, INT, B = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
OLD = np.arange(D * VOCABULARY, dtype=np.float32).reshape(VOCABULARY, D)
NEW, BIAS = OLD + 1, np.ones(VOCABULARY, np.float32)
DETECTOR = DetectorInfo(threshold=0.25, refusal="no", refusal_token=3)
FACTORS = (np.ones((D, 1), np.float32), np.ones((1, VOCABULARY), np.float32))
PARAMETER = ParameterInfo(name="head.weight", graph="decoder", source="0.x", shape=(D, VOCABULARY), dtype="float32")


def model(inputs, outputs, nodes, **initializers) -> ir.Model:
    graph = ir.Graph(list(inputs), list(outputs), nodes=list(nodes), opset_imports={"": 20}, name="made")
    for name, array in initializers.items():
        tensor = ir.tensor(array, name=name.replace("__", "."))
        value = next(one for node in nodes for one in node.inputs if one.name == tensor.name)
        value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(tensor.shape)
        graph.register_initializer(value)
    return ir.Model(graph, ir_version=10)


def result(node: ir.Node, name: str, dtype, shape) -> ir.Value:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
    return value


def decoder(*further: ir.Value, risk: bool = True) -> ir.Model:
    """inputs_embeds @ head.weight → logits; the risk is a mean of the embeddings; each of ``further`` is read."""
    embeds = ir.val("inputs_embeds", F, ["batch", "sequence", D])
    mask, past = (
        ir.val("attention_mask", INT, ["batch", "total"]),
        ir.val("past_key_values.0.key", F, ["batch", 1, "p", 2]),
    )
    head = ir.node("MatMul", [embeds, ir.val("head.weight")], name="head")
    mean = ir.node("ReduceMean", [embeds, ir.val("axes")], {"keepdims": 0}, name="mean")
    logits = result(head, "logits", F, ["batch", "sequence", VOCABULARY])
    outputs = [logits, result(mean, "risk_score", F, ["batch"])]
    casts = [ir.node("Cast", [value], {"to": int(F)}, name=f"read {value.name}") for value in further]
    kept = outputs if risk else outputs[:1]
    return model(
        [embeds, mask, past, *further], kept, [head, mean, *casts], head__weight=OLD.T.copy(), axes=np.array([1, 2])
    )


def embedding() -> ir.Model:
    ids = ir.val("input_ids", INT, ["batch", "sequence"])
    node = ir.node("Gather", [ir.val("table"), ids], name="look up")
    return model([ids], [result(node, "inputs_embeds", F, ["batch", "sequence", D])], [node], table=OLD)


def encoder(name: str = "image_features") -> ir.Model:
    pixels = ir.val("pixel_values", F, ["images", 3, D])
    node = ir.node("Identity", [pixels], name="see")
    return model([pixels], [result(node, name, F, ["images", 3, D])], [node])


def layer(**new) -> LayerUpdate:
    return LayerUpdate("head", "decoder", {"weight": OLD}, new)


def vision_mask() -> ir.Value:
    return ir.val("vision_mask", B, ["batch", "sequence"])


def types() -> ir.Value:
    return ir.val("token_type_ids", INT, ["batch", "sequence"])


def biased() -> ir.Model:
    """A graph whose head has got a bias as an addition of its own, before a residual sum."""
    made = UpdatePass("decoder", [layer(bias=BIAS)]).run(decoder())
    logits = made.graph.outputs[0]
    total = ir.node("Add", [logits, logits], name="residual")
    made.graph.append(total)
    return made


def external(location: str) -> ir.Model:
    made = embedding()
    value = made.graph.initializers["table"]
    value.const_value = ir.ExternalTensor(location, 8, OLD.nbytes, F, shape=ir.Shape(OLD.shape), name="table")
    return made


def turned() -> ir.Model:
    """A graph whose head reads its matrix turned around."""
    made = decoder()
    head = next(node for node in made.graph if node.name == "head")
    weight = ir.val("w", F, OLD.shape, const_value=StreamedTensor(HeldWeight(torch.from_numpy(OLD)), F, "w"))
    made.graph.register_initializer(weight)
    node = ir.node("Transpose", [weight], {"perm": [1, 0]}, name="turn")
    result(node, "turned", F, OLD.T.shape)
    made.graph.insert_before(head, node)
    head.replace_input_with(1, node.outputs[0])
    return made


def adapted() -> ir.Model:
    return UpdatePass("decoder", [layer(weight=NEW)]).run(decoder())


# pass, a graph that it takes, one that it refuses, and with which words; what is said when it does nothing
CASES = [
    (
        lambda: UpdatePass("decoder", [layer(weight=NEW)]),
        decoder,
        (adapted, "already holds a safetykit adapter"),
        "No node reads the new head.weight",
    ),
    (
        lambda: LowRankPass("decoder", [LowRank(layer(weight=NEW), *FACTORS)]),
        decoder,
        (embedding, None),
        "factor down of head.weight is not read once",
    ),
    (
        lambda: DetectorPass(DETECTOR, enforce=False),
        decoder,
        (lambda: decoder(risk=False), "has no outputs `risk_score` and `logits`"),
        "does not state the detector",
    ),
    (
        lambda: OpenPass([PARAMETER]),
        decoder,
        (embedding, "does not read the parameter head.weight"),
        "inputs are not those before and the parameters",
    ),
    (
        WidenFeaturesPass,
        encoder,
        (lambda: encoder("others"), "no output `image_features`"),
        "not one channel wider",
    ),
    (
        lambda: WidenEmbeddingsPass(5),
        embedding,
        (encoder, "no output `inputs_embeds`"),
        "not one channel wider",
    ),
    (
        lambda: ReadChannelPass(["vision_mask"]),
        lambda: decoder(vision_mask()),
        (decoder, "no input `vision_mask`"),
        "still reads `vision_mask`",
    ),
    (
        lambda: PhasesPass("token_type_ids"),
        lambda: decoder(types()),
        (decoder, "no input `token_type_ids`"),
        "still reads `token_type_ids`",
    ),
    (
        lambda: RenameAxisPass("batch", "batch_size"),
        decoder,
        (encoder, "No axis is called 'batch'"),
        "is not called 'batch_size'",
    ),
    (FlattenPass, encoder, (embedding, "no output `image_features`"), "is not .image_tokens, 4."),
    (
        lambda: MergeFeaturesPass(5, ir.val("image_features", F, ["image_tokens", D])),
        embedding,
        (encoder, "no input `input_ids`"),
        "does not read the features",
    ),
    (
        KeepLastLogitsPass,
        decoder,
        (embedding, "No LM head over states of rank 3"),
        "not those before and num_logits_to_keep",
    ),
    (
        AllLogitsPass,
        lambda: KeepLastLogitsPass().run(decoder()),
        (decoder, "no input num_logits_to_keep"),
        "not those before without num_logits_to_keep",
    ),
    (
        lambda: QuantisePass(Int4Options(block_size=16)),
        decoder,
        (embedding, "no constant weight to quantise"),
        "Of 1 products, 0 read codes and 1 still a matrix",
    ),
    (
        lambda: RelocatePass({"old.data": "new.data"}),
        lambda: external("old.data"),
        (lambda: external("other.data"), "lies in other.data, which is unknown"),
        "looked for at another place",
    ),
]
each = pytest.mark.parametrize(
    ("make", "good", "bad", "idle"), CASES, ids=[type(make()).__name__ for make, *_ in CASES]
)


@each
def test_a_pass_changes_a_graph_that_meets_its_requirements(make, good, bad, idle):
    graph, lies_here = good(), make is not CASES[-1][0]
    assert not lies_here or passes_checker(graph)
    assert make().run(graph) is graph
    assert not lies_here or passes_checker(graph)


@each
def test_a_pass_refuses_another_graph_and_leaves_it_as_it_is(make, good, bad, idle):
    graph, words = bad[0](), bad[1]
    before = [(node.name, node.op_type, [value and value.name for value in node.inputs]) for node in graph.graph]
    with pytest.raises(UnsupportedGraph, match=words):
        make().run(graph)
    assert before == [
        (node.name, node.op_type, [value and value.name for value in node.inputs]) for node in graph.graph
    ]


@each
def test_a_pass_that_does_not_do_its_work_breaks_its_promise(make, good, bad, idle, monkeypatch):
    idling = make()
    monkeypatch.setattr(type(idling), "change", lambda self, model: None)
    with pytest.raises(UnsupportedGraph, match=idle):
        idling.run(good())


def test_matrices_are_turned_around_as_they_are_written(monkeypatch):
    model = FoldTransposesPass().run(turned())
    assert "Transpose" not in {node.op_type for node in model.graph}
    head = next(node for node in model.graph if node.name == "head")
    assert np.array_equal(head.inputs[1].const_value.numpy(), OLD.T)
    assert FoldTransposesPass().run(decoder()).graph.num_nodes() == 2  # one that has none stays as it is
    monkeypatch.setattr(FoldTransposesPass, "change", lambda self, model: None)
    with pytest.raises(UnsupportedGraph, match="1 matrices are still read through a Transpose"):
        FoldTransposesPass().run(turned())


def test_a_simplified_graph_is_no_larger_and_has_the_same_interface(monkeypatch):
    add = ir.node("Identity", [ir.val("none")], name="stray")
    for change, words in (
        (lambda self, model: model.graph.append(add), "3 nodes instead of 2"),
        (lambda self, model: model.graph.outputs.pop(), "other inputs or outputs"),
    ):
        monkeypatch.setattr(SimplifyPass, "change", change)
        with pytest.raises(UnsupportedGraph, match=words):
            SimplifyPass().run(decoder())


def test_a_matrix_that_two_products_read_is_quantised_once():
    made = decoder()
    head = next(node for node in made.graph if node.name == "head")
    made.graph.append(ir.node("MatMul", [made.graph.inputs[0], head.inputs[1]], name="again"))
    coded = [node for node in QuantisePass(Int4Options(block_size=16)).run(made).graph if node.op_type == "MatMulNBits"]
    assert len(coded) == 2 and coded[0].inputs[1:] == coded[1].inputs[1:]
    assert "head.weight" not in made.graph.initializers


def test_an_enforced_detector_must_be_forced_by_its_own_threshold(monkeypatch):
    model = DetectorPass(DETECTOR, enforce=True).run(decoder())
    assert stated_detector(model).enforced == (0.25, 3)
    other = DetectorPass(DETECTOR, enforce=True)
    changed = DETECTOR.model_copy(update={"threshold": 0.5})
    monkeypatch.setattr(other, "change", lambda model: DetectorPass(changed, enforce=True).change(model))
    with pytest.raises(UnsupportedGraph, match="does not state the detector"):
        other.run(decoder())


def test_an_update_that_adds_or_loses_nodes_breaks_its_promise(monkeypatch):
    def add(self, model):
        model.graph.append(ir.node("Identity", [model.graph.inputs[0]], name="stray"))

    def lose(self, model):
        model.graph.remove(next(node for node in model.graph if node.name == "read vision_mask"))

    monkeypatch.setattr(UpdatePass, "change", add)
    with pytest.raises(UnsupportedGraph, match="has added Identity 'stray'"):
        UpdatePass("decoder", []).run(decoder())
    monkeypatch.setattr(UpdatePass, "change", lose)
    with pytest.raises(UnsupportedGraph, match="1 nodes are gone"):
        UpdatePass("decoder", []).run(decoder(vision_mask()))


def test_merged_biases_are_still_read(monkeypatch):
    model = MergeBiasesPass().run(biased())
    assert len(model.graph.initializers["safetykit.head.bias"].uses()) == 1

    def forget(self, model):
        node = next(node for node in model.graph if node.name.startswith("safetykit.bias."))
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)

    monkeypatch.setattr(MergeBiasesPass, "change", forget)
    with pytest.raises(UnsupportedGraph, match=r"The bias safetykit.head.bias is read 0 times"):
        MergeBiasesPass().run(biased())


def test_a_low_rank_update_of_zero_is_refused():
    zero = LowRank(layer(weight=NEW), FACTORS[0] * 0, FACTORS[1])
    with pytest.raises(UsageError, match="low-rank update of head.weight is zero"):
        LowRankPass("decoder", [zero]).run(decoder())
