"""An updated graph computes what the updated model computes, without a node more."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from affine import adapter_of, projection
from fusing import fused
from onnx import TensorProto, helper, numpy_helper

from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import UnsupportedGraph, UsageError
from safetykit.export.base.own import export_base
from safetykit.export.manifest import GRAPHS, LAYOUT, read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.passes import passes_checker
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import copy_base, place, save_adapted
from safetykit.export.surgery.bake import bake
from safetykit.export.surgery.biases import merge_biases
from safetykit.export.surgery.layer_updates import LayerUpdate, plan_updates
from safetykit.export.surgery.updates import update_graph
from safetykit.toolkit.model.folding import fold
from safetykit.toolkit.model.updates import updated

MIXED = parity_requests()["4 rows padded, mixed"]
WIDTH, INNER = 32, 64
DECODER = "model.language_model.layers"
PROJECTOR = "model.multi_modal_projector"


def low_rank(layer: str, columns: int = WIDTH, seed: int = 0) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"up": torch.randn(WIDTH, 2, generator=generator), "down": torch.randn(2, columns, generator=generator)}
    return WeightUpdate(f"{layer}.weight", {name: 0.4 * tensor for name, tensor in tensors.items()})


def bias(layer: str, seed: int = 1) -> WeightUpdate:
    return WeightUpdate(f"{layer}.bias", {"value": torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))})


@pytest.fixture(scope="module")
def half_folder(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "half"
    export_base(vlm, folder, "fp16")
    return folder


@pytest.fixture
def exported(vlm, base_folder, tmp_path):
    """Update, then bake, the graphs of a base in a new folder; gives the opened model and the nodes per graph."""

    def run(updates, *adapters, base=base_folder, edit=None):
        manifest = read_manifest(base)
        copy_base(base, tmp_path, manifest)
        layers, nodes = plan_updates(vlm, updates), {}
        for name in ("vision_encoder", "decoder"):
            model = ir.load(tmp_path / LAYOUT.graph(name))
            if edit is not None and name == "decoder":
                edit(model)
            before = sum(1 for _ in model.graph)
            update_graph(model, name, layers)
            if adapters and name == "decoder":
                bake(model, name, place(adapters))
            merge_biases(model)
            assert edit is not None or passes_checker(model)
            nodes[name] = (before, sum(1 for _ in model.graph))
            save_adapted(model, tmp_path, name)
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"]), nodes

    return run


def assert_same(vlm, onnx_vlm, *adapters, updates=(), steps=4, relative=1e-5):
    bare = compare_logits(vlm, onnx_vlm, MIXED, steps).logits
    with updated(vlm, updates), vlm.applied(*adapters):
        gap = compare_logits(vlm, onnx_vlm, MIXED, steps).logits
    assert gap.error <= relative * gap.scale
    assert bare.error > 20 * gap.error, "the update should matter here"


@pytest.mark.parametrize("sites", [["0.mlp"], ["1.attn"], ["0.attn", "0.mlp", "1.attn", "1.mlp", "2.attn", "2.mlp"]])
def test_a_folded_adapter_is_the_hooked_one_without_a_node_more(vlm, exported, sites):
    items = (projection(f"decoder.layers.{site}", WIDTH, strength=1.5, seed=at) for at, site in enumerate(sites))
    adapter = adapter_of(vlm.base, *items)
    onnx_vlm, nodes = exported(fold(vlm, adapter).updates)
    assert_same(vlm, onnx_vlm, adapter)
    assert all(before == after for before, after in nodes.values())


def test_two_interventions_at_one_site_of_non_orthogonal_bases(vlm, exported):
    items = (projection("decoder.layers.1.mlp", WIDTH, strength=1.5, orthonormal=False, seed=at) for at in range(2))
    adapter = adapter_of(vlm.base, *items)
    onnx_vlm, nodes = exported(fold(vlm, adapter).updates)
    assert_same(vlm, onnx_vlm, adapter)
    assert nodes["decoder"][0] == nodes["decoder"][1]


@pytest.mark.slow
def test_in_half_precision(vlm, exported, half_folder):
    adapter = adapter_of(vlm.base, *(projection(f"decoder.layers.{site}", WIDTH) for site in ("1.mlp", "2.attn")))
    onnx_vlm, nodes = exported(fold(vlm, adapter).updates, base=half_folder)
    assert_same(vlm, onnx_vlm, adapter, relative=5e-3)
    assert all(before == after for before, after in nodes.values())


def test_projector_and_tower(vlm, exported):
    """Biases that are there, one of which the exporter may share with others of equal value."""
    updates = [
        low_rank(f"{PROJECTOR}.linear_2"),
        bias(f"{PROJECTOR}.linear_2"),
        bias(f"{PROJECTOR}.linear_1"),
        WeightUpdate("model.vision_tower.encoder.layers.0.mlp.fc2.bias", {"value": torch.linspace(-1, 1, 16)}),
    ]
    onnx_vlm, nodes = exported(updates)
    assert_same(vlm, onnx_vlm, updates=updates)
    assert all(before == after for before, after in nodes.values())


def test_updates_and_ops_at_one_site_act_as_in_pytorch(vlm, exported, tmp_path):
    """The op at a branch's output sees the new bias; where none reads it, the bias is merged."""
    layers = [f"{DECODER}.{at}.mlp.down_proj" for at in (1, 2)]
    updates = [low_rank(layers[0], INNER), *(bias(layer, seed) for seed, layer in enumerate(layers))]
    items = (projection(f"decoder.layers.{site}", WIDTH, scope="last") for site in ("1.mlp", "2"))
    adapter = adapter_of(vlm.base, *items)
    onnx_vlm, _ = exported(updates, adapter)
    assert_same(vlm, onnx_vlm, adapter, updates=updates)
    left = [node.name for node in ir.load(tmp_path / "decoder.onnx").graph if "bias" in (node.name or "")]
    assert left == [f"safetykit.bias.{DECODER}.1.mlp.down_proj.bias"]


def test_a_fused_skip_norm_takes_the_bias_itself(vlm, exported):
    updates = [
        low_rank(f"{DECODER}.0.mlp.down_proj", INNER),
        *(bias(f"{DECODER}.{layer}", seed) for seed, layer in enumerate(("0.mlp.down_proj", "1.self_attn.o_proj"))),
    ]
    onnx_vlm, nodes = exported(updates, edit=fused)
    assert_same(vlm, onnx_vlm, updates=updates)
    assert nodes["decoder"][0] == nodes["decoder"][1]


def test_an_op_on_the_sum_of_a_fused_skip_norm_sees_the_bias(vlm, exported):
    updates = [bias(f"{DECODER}.0.mlp.down_proj"), bias(f"{DECODER}.1.mlp.down_proj")]
    adapter = adapter_of(vlm.base, *(projection(f"decoder.layers.{site}", WIDTH) for site in ("0", "1.mlp")))
    onnx_vlm, _ = exported(updates, adapter, edit=fused)
    assert_same(vlm, onnx_vlm, adapter, updates=updates)


def test_the_bases_weights_stay_and_new_ones_lie_beside_them(vlm, exported, base_folder, tmp_path):
    exported([low_rank(f"{DECODER}.1.mlp.down_proj", INNER), bias(f"{DECODER}.1.mlp.down_proj")])
    for name in GRAPHS:
        assert (tmp_path / LAYOUT.data(name)).read_bytes() == (base_folder / LAYOUT.data(name)).read_bytes()
    assert (tmp_path / LAYOUT.adapter_data("decoder")).stat().st_size >= WIDTH * INNER * 4
    assert not (tmp_path / LAYOUT.adapter_data("vision_encoder")).exists()
    names = ir.load(tmp_path / "decoder.onnx").graph.initializers
    assert {f"safetykit.{DECODER}.1.mlp.down_proj.{name}" for name in ("weight", "bias")} <= set(names)


def test_an_updated_graph_is_not_updated_again(vlm, base_folder):
    layers = plan_updates(vlm, [low_rank(f"{DECODER}.1.mlp.down_proj", INNER)])
    model = update_graph(ir.load(base_folder / "decoder.onnx"), "decoder", layers)
    with pytest.raises(UnsupportedGraph, match="already holds a safetykit adapter.*give all adapters at once"):
        update_graph(model, "decoder", layers)


def test_the_token_embedding_is_refused(vlm):
    shape = vlm.parts.embed_tokens.weight.shape
    update = WeightUpdate("model.language_model.embed_tokens.weight", {"value": torch.zeros(shape)})
    with pytest.raises(UsageError, match="token embedding, which is not updated|are one tied weight"):
        plan_updates(vlm, [update])


@pytest.mark.slow
def test_an_update_that_changes_nothing_is_refused(vlm, base_folder, half_folder):
    old = vlm.model.get_submodule(f"{DECODER}.1.mlp.down_proj").weight.detach()
    layers = plan_updates(vlm, [WeightUpdate(f"{DECODER}.1.mlp.down_proj.weight", {"value": old.half().float()})])
    update_graph(ir.load(base_folder / "decoder.onnx"), "decoder", layers)
    with pytest.raises(UsageError, match="change nothing in the decoder graph at its precision"):
        update_graph(ir.load(half_folder / "decoder.onnx"), "decoder", layers)


@pytest.mark.slow
def test_a_value_beyond_half_precision_is_refused(vlm, half_folder):
    layers = plan_updates(vlm, [WeightUpdate(f"{DECODER}.1.mlp.down_proj.bias", {"value": torch.full((WIDTH,), 1e5)})])
    with pytest.raises(UsageError, match="down_proj.bias overflows float16.*Export in fp32"):
        update_graph(ir.load(half_folder / "decoder.onnx"), "decoder", layers)


# Small graphs, as other exporters write a linear layer.

OLD = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
NEW = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
BIAS, SHIFT = np.arange(3, dtype=np.float32) + 1, np.array([5, -2, 7], np.float32)
X = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)


def graph_of(nodes, arrays) -> ir.Model:
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    (x, y) = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", name]) for name in "xy")
    graph = helper.make_graph([helper.make_node(*args, **kw) for args, kw in nodes], "g", [x], [y], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def node(op, inputs, output="y", **attributes):
    return (op, inputs, [output]), attributes


FORMS = {
    "MatMul": ([node("MatMul", ["x", "w"])], OLD.T, None),
    "MatMul and Add": ([node("MatMul", ["x", "w"], "m"), node("Add", ["b", "m"])], OLD.T, BIAS),
    "Transpose": ([node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"])], OLD, None),
    "Gemm": ([node("Gemm", ["x", "w"])], OLD.T, None),
    "Gemm with bias": ([node("Gemm", ["x", "w", "b"])], OLD.T, BIAS),
    "Gemm of a transpose": ([node("Gemm", ["x", "w", "b"], transB=1)], OLD, BIAS),
}


def run(model: ir.Model) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})[0]


def layer_of(old=OLD, new=NEW, held=None, shift=None) -> list[LayerUpdate]:
    olds = {"weight": old} | ({} if held is None else {"bias": held})
    news = ({} if new is None else {"weight": new}) | ({} if shift is None else {"bias": shift})
    return [LayerUpdate("layer", "decoder", olds, news)]


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_a_linear_layer(form, with_weight, with_bias):
    nodes, weight, held = FORMS[form]
    model = graph_of(nodes, {"w": weight} | ({} if held is None else {"b": held}))
    layers = layer_of(new=NEW if with_weight else None, held=held, shift=SHIFT if with_bias else None)
    if with_weight or with_bias:
        merge_biases(update_graph(model, "decoder", layers))
    constant = SHIFT if with_bias else 0 if held is None else held
    expected = X @ (NEW if with_weight else OLD).T + constant
    assert np.abs(run(model) - expected).max() < 1e-5


def test_scale_and_shift_of_a_norm():
    old, new, held, shift = np.random.default_rng(4).standard_normal((4, 4)).astype(np.float32)
    model = graph_of([node("LayerNormalization", ["x", "w", "b"])], {"w": old, "b": held})
    update_graph(model, "decoder", layer_of(old, new, held, shift))
    normed = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    assert np.abs(run(model) - (normed * new + shift)).max() < 1e-5


def test_a_symmetric_weight_is_oriented_by_its_reader():
    old, new = np.eye(4, dtype=np.float32), np.random.default_rng(3).standard_normal((4, 4)).astype(np.float32)
    for kind in ({"transB": 1}, {}):
        model = graph_of([node("Gemm", ["x", "w"], **kind)], {"w": old})
        update_graph(model, "decoder", layer_of(old, new))
        assert np.abs(run(model) - X @ new.T).max() < 1e-5


def test_an_initializer_that_other_nodes_read_keeps_its_value_for_them():
    """Exporters store equal biases once."""
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "n"), node("Mul", ["n", "b"])]
    model = graph_of(nodes, {"w": OLD.T, "b": BIAS})
    update_graph(model, "decoder", layer_of(new=None, held=BIAS, shift=SHIFT))
    assert np.abs(run(model) - (X @ OLD.T + SHIFT) * BIAS).max() < 1e-5


def test_a_new_bias_that_two_nodes_read_keeps_a_node():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "m"])]
    model = graph_of(nodes, {"w": OLD.T})
    merge_biases(update_graph(model, "decoder", layer_of(new=None, shift=SHIFT)))
    assert np.abs(run(model) - 2 * (X @ OLD.T + SHIFT)).max() < 1e-5


@pytest.mark.parametrize(
    ("nodes", "arrays", "message"),
    [
        ([node("MatMul", ["x", "w"])], {"w": 2 * OLD.T}, "No initializer of the graph is layer.weight.*another model"),
        ([node("MatMul", ["x", "w"])], {"w": OLD}, "No initializer of the graph is layer.weight"),
        (
            [node("MatMul", ["x", "w"], "m"), node("MatMul", ["x", "w"], "n"), node("Add", ["m", "n"])],
            {"w": OLD.T},
            "layer.weight is read at 2 places of the graph, so it is shared or not unique.*--mode bake",
        ),
        (
            [node("MatMul", ["x", "w"], "m"), node("MatMul", ["x", "v"], "n"), node("Add", ["m", "n"])],
            {"w": OLD.T, "v": OLD.T},
            "layer.weight is read at 2 places",
        ),
        (
            [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"])],
            {"q": np.ones((4, 3), np.int8), "s": np.array(0.5, np.float32)},
            r"weights are quantised \(DequantizeLinear\).*--mode bake, or fold before quantising",
        ),
    ],
)
def test_a_weight_that_is_not_found_for_certain_is_refused(nodes, arrays, message):
    with pytest.raises(UnsupportedGraph, match=message):
        update_graph(graph_of(nodes, arrays), "decoder", layer_of())


def test_a_bias_of_another_value_is_refused():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"])]
    with pytest.raises(UnsupportedGraph, match="layer.bias was not found beside its weight"):
        update_graph(graph_of(nodes, {"w": OLD.T, "b": BIAS + 1}), "decoder", layer_of(held=BIAS, shift=SHIFT))
    with pytest.raises(UnsupportedGraph, match="adds a constant where the base has no layer.bias"):
        update_graph(graph_of(nodes, {"w": OLD.T, "b": BIAS}), "decoder", layer_of(shift=SHIFT))
