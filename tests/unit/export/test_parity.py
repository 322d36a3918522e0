"""The gate passes good exports and stops every bad one we could think of."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from spoiling import ITEMS, STEPS, changed, spoilt_exports
from tracing import all_steps

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import ParityFailed, UsageError
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.swap_check import check_swap
from safetykit.export.runtime.onnx_vlm import OnnxVLM


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return spoilt_exports(vlm, base_folder, tmp_path)


BAD_ADAPTERS = {
    "sign of the target flipped": lambda a: changed(a, 1, target=lambda t: -t),
    # A basis vector's own sign does not matter to a projection; the gate's does.
    "sign of the gate flipped": lambda a: changed(a, 1, gate=lambda t: -t),
    "basis rows reversed": lambda a: changed(a, 0, basis=lambda t: t.flip(0).contiguous()),
    "basis of lower rank": lambda a: changed(a, 0, basis=lambda t: t[:, :1].contiguous()),
    "mean dropped": lambda a: changed(a, 0, mean=torch.zeros_like),
    "strength one percent off": lambda a: changed(a, 0, beta=lambda t: t * 1.01),
    "gate always open": lambda a: changed(a, 1, threshold=lambda t: t - 100),
    "gate never open": lambda a: changed(a, 1, threshold=lambda t: t + 100),
    "parameters rounded to half precision": lambda a: changed(a, 0, basis=lambda t: t.half().float()),
    "wrong layer": lambda a: changed(a, 1, site=Site.block(2)),
    "branch instead of block": lambda a: changed(a, 0, site=Site("mlp", 0)),
    "wrong scope": lambda a: changed(a, 1, scope="all"),
    "wrong phase": lambda a: changed(a, 0, phase="prefill"),
    "one intervention dropped": lambda a: Adapter(a.info, a.interventions[:1]),
    "interventions exchanged": lambda a: Adapter(a.info, a.interventions[::-1]),
}


def change_weight(*shape: int):
    """Change a seventh of the last weight of this shape; exporters rename weights they transpose."""

    def spoil(model: ir.Model) -> None:
        value = [value for value in model.graph.initializers.values() if tuple(value.const_value.shape) == shape][-1]
        array = value.const_value.numpy().copy()
        array.flat[:: max(1, array.size // 7)] += 0.05
        value.const_value = ir.tensor(array, name=value.name)

    return spoil


def unmask_padding(model: ir.Model) -> None:
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    one = ir.val("one", const_value=ir.tensor(np.array(1, np.int64), name="one"))
    model.graph.register_initializer(one)
    readers = list(mask.uses())
    node = ir.node("Max", [mask, one])
    model.graph.insert_before(model.graph[0], node)
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])


def exchange_caches(model: ir.Model) -> None:
    outputs = {value.name: value for value in model.graph.outputs}
    first, second = outputs["present.0.key"], outputs["present.1.key"]
    first.name, second.name = "present.1.key", "present.0.key"


def op_in_half_precision(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "safetykit.0.op")
    down = ir.node("Cast", [node.inputs[0]], {"to": int(ir.DataType.FLOAT16)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    model.graph.insert_before(node, [down, up])
    node.replace_input_with(0, up.outputs[0])


def constant(model: ir.Model, name: str, number: float) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(np.array(number, np.float32), name=name))
    model.graph.register_initializer(value)
    return value


def op_overflows_as_half_precision_does(model: ir.Model) -> None:
    """Squares of more than 65504: right for ordinary states, infinite for outliers."""
    node = next(node for node in model.graph if node.name == "safetykit.0.op")
    limit, infinite = constant(model, "limit", 256.0), constant(model, "infinite", np.inf)
    size = ir.node("Abs", [node.inputs[0]])
    large = ir.node("Greater", [size.outputs[0], limit])
    chosen = ir.node("Where", [large.outputs[0], infinite, node.inputs[0]])
    model.graph.insert_before(node, [size, large, chosen])
    node.replace_input_with(0, chosen.outputs[0])


def op_bypassed(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "safetykit.0.op")
    node.outputs[0].replace_all_uses_with(node.inputs[0])


BAD_GRAPHS = {
    "a decoder weight changed": ("decoder", change_weight(64, 32)),
    "the LM head changed": ("decoder", change_weight(32, 30)),
    "a projector weight changed": ("vision_encoder", change_weight(16, 32)),
    "an embedding changed": ("embed_tokens", change_weight(30, 32)),
    "padding not masked": ("decoder", unmask_padding),
    "caches of two layers exchanged": ("decoder", exchange_caches),
    "op computed in half precision": ("decoder", op_in_half_precision),
    "op in the graph but bypassed": ("decoder", op_bypassed),
    "op overflows as in half precision": ("decoder", op_overflows_as_half_precision_does),
}


def test_a_good_export_passes(vlm, export, base_folder, make_adapter):
    adapter = make_adapter(*ITEMS)
    with all_steps():
        report = check_parity(vlm, export(adapter), [adapter], base=OnnxVLM.from_pretrained(base_folder))
    assert report.passed and report.steps == 32
    report.require()
    assert {check.kind for check in report.checks} == {"logits", "adapter-off", "scores", "op", "invariant"}


@pytest.mark.parametrize("seed", range(1, 5))
def test_good_exports_raise_no_alarm(vlm, export, make_adapter, seed):
    ops = ("SubspaceProjection", "GatedSteering", "TargetSteering", "SupervisedSteering")
    items = [(ops[(seed + at) % 4], f"decoder.layers.{at}", ("last", "all")[seed % 2], "prefill") for at in range(3)]
    adapter = make_adapter(*items, seed=seed)
    check_parity(vlm, export(adapter), [adapter], steps=STEPS).require()


def test_a_gate_whose_large_terms_cancel_raises_no_alarm(vlm, export, make_adapter):
    """The first row's score is a millionth of what it sums: rounding is a share of the terms, not of what is left."""
    adapter = changed(make_adapter(ITEMS[1]), 0, gate=lambda gate: 1e3 * gate)
    with vlm.applied(adapter) as hooks:
        vlm.prefill(parity_requests()["1 row, text"])
    score = hooks.extras["0.score"][0]
    adapter = changed(adapter, 0, threshold=lambda before: before + score - 1.0)
    report = check_parity(vlm, export(adapter), [adapter], steps=STEPS)
    report.require()
    wrong = changed(adapter, 0, threshold=lambda before: before + 1.0)
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(wrong), [adapter], steps=STEPS).require()


@pytest.mark.slow
def test_random_good_exports_raise_no_alarm(vlm, export, make_adapter, hundred):
    random = np.random.default_rng(0)
    ops = ("SubspaceProjection", "GatedSteering", "TargetSteering", "SupervisedSteering")
    sites = [str(site) for site in vlm.parts.sites() if site.kind not in ("vision", "projector", "logits")]
    for seed in range(hundred):
        items = [
            (random.choice(ops), site, random.choice(("all", "text", "last")), random.choice(("prefill", "both")))
            for site in random.choice(sites, size=2, replace=False)
        ]
        adapter = make_adapter(*items, seed=seed, rank=int(random.integers(1, 8)))
        check_parity(vlm, export(adapter), [adapter], steps=STEPS).require()


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_ADAPTERS)
def test_another_adapter_than_the_right_one_is_caught(vlm, export, make_adapter, what):
    adapter = make_adapter(*ITEMS)
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(BAD_ADAPTERS[what](adapter)), [adapter], steps=STEPS).require()


@pytest.mark.parametrize("what", BAD_GRAPHS)
def test_a_spoiled_graph_is_caught(vlm, export, make_adapter, what):
    adapter = make_adapter(*ITEMS)
    graph, spoil = BAD_GRAPHS[what]
    with pytest.raises(ParityFailed, match="parity checks failed; first"):
        check_parity(vlm, export(adapter, spoil=spoil, graph=graph), [adapter], steps=STEPS).require()


def with_bias(adapter: Adapter) -> Adapter:
    value = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.1
    update = WeightUpdate("model.language_model.layers.1.mlp.down_proj.bias", {"value": value})
    return dataclasses.replace(adapter, updates=(update,))


def test_a_dropped_bias_is_caught(vlm, export, make_adapter):
    adapter = with_bias(make_adapter(*ITEMS))
    check_parity(vlm, export(adapter), [adapter], steps=STEPS).require()
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(make_adapter(*ITEMS)), [adapter], steps=STEPS).require()


def test_two_adapters_exchanged_are_caught(vlm, export, make_adapter):
    first, second = make_adapter(*ITEMS, seed=1), make_adapter(*ITEMS, seed=2)
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(second, first), [first, second], steps=STEPS).require()


def test_another_provider_than_the_one_asked_for_is_caught(export, make_adapter):
    """It is caught before parity would run, on the wrong hardware: on opening the graphs."""
    for provider in ("CUDAExecutionProvider", "AzureExecutionProvider"):
        if provider == "CUDAExecutionProvider" and provider in onnxruntime.get_available_providers():
            continue
        with pytest.raises(UsageError, match="does not give|leaves nodes of"):
            export(make_adapter(*ITEMS), providers=[provider])


@pytest.fixture
def held_adapter(vlm, make_adapter) -> Adapter:
    """A gate that some of the compared prompts open and others do not, held while they are answered."""
    adapter = make_adapter(("TargetSteering", "decoder.layers.1", "all", "both"))
    with vlm.applied(adapter) as hooks:
        vlm.prefill(parity_requests()["4 rows padded, mixed"])
    between = hooks.extras["0.score"].sort().values[1:3].mean()
    adapter = changed(adapter, 0, threshold=lambda before: before + between)
    return Adapter(adapter.info, (dataclasses.replace(adapter.interventions[0], gate="held"),))


def forget_the_decision(model: ir.Model) -> None:
    """Every call after the prompt is told that the gate was closed."""
    node = next(node for node in model.graph if node.name == "safetykit.0.op")
    held_before = node.inputs[3]
    closed = ir.node("Mul", [held_before, constant(model, "nothing", 0.0)])
    model.graph.insert_before(node, closed)
    node.replace_input_with(3, closed.outputs[0])


def decide_at_every_token(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "safetykit.0.op")
    true = ir.val("always", const_value=ir.tensor(np.array(True), name="always"))
    model.graph.register_initializer(true)
    node.replace_input_with(2, true)


@pytest.mark.parametrize("spoil", [forget_the_decision, decide_at_every_token])
def test_a_stale_gate_is_caught(vlm, export, held_adapter, spoil):
    check_parity(vlm, export(held_adapter), [held_adapter], steps=STEPS).require()
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(held_adapter, spoil=spoil), [held_adapter], steps=STEPS).require()


def zero_the_defaults(model: ir.Model) -> None:
    """Fail open: no safety unless the caller remembers to feed it."""
    for value in model.graph.initializers.values():
        if value.name.startswith("safetykit.0."):
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=value.name)


def read_a_copy(model: ir.Model) -> None:
    """The op reads constants; what a caller feeds goes nowhere."""
    for name in ("safetykit.0.basis", "safetykit.1.target"):
        value = model.graph.initializers[name]
        copy = ir.val(f"copy.{name}", const_value=ir.tensor(value.const_value.numpy().copy(), name=f"copy.{name}"))
        model.graph.register_initializer(copy)
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, copy)


def test_swappable_parameters_without_defaults_are_caught(vlm, export, make_adapter):
    adapter = make_adapter(*ITEMS)
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(adapter, mode="hot-swap", spoil=zero_the_defaults), [adapter], steps=STEPS).require()


def test_an_override_that_goes_nowhere_is_caught(vlm, export, make_adapter):
    adapter, other = make_adapter(*ITEMS), make_adapter(*ITEMS, seed=3)
    onnx_vlm = export(adapter, mode="hot-swap", spoil=read_a_copy)
    check_parity(vlm, onnx_vlm, [adapter], steps=STEPS).require()
    report = check_swap(vlm, onnx_vlm, [other], steps=STEPS)
    assert not report.passed
    with pytest.raises(ParityFailed):
        report.require()


@pytest.mark.parametrize("what", ["mean dropped", "sign of the target flipped", "gate never open"])
def test_another_adapter_than_the_one_swapped_in_is_caught(vlm, export, make_adapter, what):
    adapter, other = make_adapter(*ITEMS), make_adapter(*ITEMS, seed=3)
    onnx_vlm = export(adapter, mode="hot-swap")
    assert check_swap(vlm, onnx_vlm, [other], steps=STEPS).passed
    onnx_vlm.swap(BAD_ADAPTERS[what](other))
    with pytest.raises(ParityFailed):
        check_parity(vlm, onnx_vlm, [other], steps=STEPS).require()


@pytest.mark.slow
def test_random_swaps_raise_no_alarm(vlm, export, make_adapter, hundred):
    """Exports of random ops and sites, into each of which ten adapters of random rank are swapped."""
    random = np.random.default_rng(1)
    ops = ("SubspaceProjection", "GatedSteering", "TargetSteering", "SupervisedSteering")
    sites = [str(site) for site in vlm.parts.sites() if site.kind not in ("vision", "projector", "logits")]
    for number in range(max(1, hundred // 10)):
        items = [
            (random.choice(ops), site, random.choice(("all", "text", "last")), random.choice(("prefill", "both")))
            for site in random.choice(sites, size=2, replace=False)
        ]
        onnx_vlm = export(make_adapter(*items, seed=number, rank=3), mode="hot-swap")
        for seed in range(100 + 10 * number, 110 + 10 * number):
            other = make_adapter(*items, seed=seed, rank=int(random.integers(1, 8)))
            check_swap(vlm, onnx_vlm, [other], steps=STEPS).require()


def test_a_transposed_square_basis_is_caught(vlm, export, make_adapter):
    """A triangular basis: V Vᵀ and Vᵀ V are the same for a square orthonormal one."""
    adapter = make_adapter(("GatedSteering", "decoder.layers.1", "last", "prefill"), rank=32)
    adapter = changed(adapter, 0, basis=lambda t: t.triu().contiguous())
    bad = changed(adapter, 0, basis=lambda t: t.T.contiguous())
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(bad), [adapter], steps=STEPS).require()


def test_an_export_without_the_adapter_is_caught(vlm, export, make_adapter):
    with pytest.raises(ParityFailed):
        check_parity(vlm, export(), [make_adapter(*ITEMS)], steps=STEPS).require()


def test_a_spoiled_base_is_caught_with_the_adapter_off(vlm, export, base_folder, make_adapter):
    """A fault that the adapter hides: everything it touches is overwritten, but the base is wrong."""
    adapter = make_adapter(*ITEMS)
    good = export(adapter)
    graph = ir.load(base_folder / "decoder.onnx")
    change_weight(64, 32)(graph)
    bare = {"decoder": ir.serde.serialize_model(graph).SerializeToString()}
    base = OnnxVLM(base_folder, read_manifest(base_folder), vlm.inputs, ["CPUExecutionProvider"], bare)
    failed = [check for check in check_parity(vlm, good, [adapter], base=base, steps=STEPS).checks if not check.passed]
    assert {check.kind for check in failed} == {"adapter-off"}
