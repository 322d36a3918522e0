"""The gate passes good exports and stops every bad one we could think of."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tracing import all_steps

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import InvalidArtifact, ParityFailed, UsageError
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.gap import Gap
from safetykit.export.parity.report import ParityReport, find_flips
from safetykit.export.parity.swap_check import check_swap
from safetykit.export.parity.tolerances import TOLERANCES, Tolerance
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.export.surgery.updates import plan_updates
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import Decision

STEPS = 3
# The adapter that should have been exported: one ungated op, one gated one with a score.
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("TargetSteering", "decoder.layers.1", "last", "prefill"),
)


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    """Write an export of some adapters, then let a test spoil its graphs."""

    def run(*adapters: Adapter, spoil=None, graph="decoder", mode="bake", providers=CPU) -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        layers = plan_updates(vlm, [update for adapter in adapters for update in adapter.updates])
        manifest = adapt(tmp_path, base, adapters, layers, mode=mode) if adapters else base
        if spoil is not None:
            model = ir.load(tmp_path / f"{graph}.onnx")
            spoil(model)
            ir.save(model, tmp_path / f"{graph}.onnx")
        return OnnxVLM(tmp_path, manifest, vlm.inputs, providers)

    return run


def changed(adapter: Adapter, index: int, **changes) -> Adapter:
    """The adapter with other fields or tensors in one intervention."""
    item = adapter.interventions[index]
    tensors = {name: change(item.tensors[name]) for name, change in changes.items() if name in item.tensors}
    fields = {name: value for name, value in changes.items() if name not in item.tensors}
    items = list(adapter.interventions)
    items[index] = dataclasses.replace(item, tensors={**item.tensors, **tensors}, **fields)
    return Adapter(adapter.info, tuple(items))


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
    for number in range(hundred // 10):
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


def test_half_of_the_compared_rows_open_a_gate():
    records = [Record(id=str(at), prompt="how " * (at + 1), label="harmless", split="test") for at in range(10)]
    prompts = [request.prompt for request in parity_requests(records, {"8", "9"})["4 rows padded, text"]]
    assert sorted(prompts.count("how " * (at + 1)) for at in (8, 9)) == [1, 1]
    assert len({len(prompt) for prompt in prompts}) == 4


def test_nan_and_infinity_never_pass():
    assert not Tolerance(absolute=1e9, relative=1e9).passes(float("nan"), 1.0)
    assert np.isnan(Gap.between(np.array([1.0]), np.array([np.nan])).error)
    assert Gap.between(np.array([1.0]), np.array([np.inf])).error == np.inf
    assert np.isnan(Gap(1.0, 1.0, 1).join(Gap(float("nan"), 1.0, 1)).error)


def test_reports_survive_being_written(tmp_path):
    report = ParityReport(
        precision="fp32",
        providers=("CPUExecutionProvider",),
        steps=1,
        tolerances=TOLERANCES["fp32"],
        checks=(),
        passed=True,
    )
    report.write(tmp_path / "parity.json")
    assert ParityReport.read(tmp_path / "parity.json") == report
    (tmp_path / "parity.json").write_text("{}")
    with pytest.raises(InvalidArtifact):
        ParityReport.read(tmp_path / "parity.json")


def decision(number: int, outcome: str = "refused", **scores: float) -> Decision:
    return Decision(id=str(number), carrier="text", label="harmful", tags=(), text="", outcome=outcome, scores=scores)


def test_flips_are_listed_with_their_margin():
    ours = [decision(0, gate=0.25), decision(1, gate=-1.0), decision(2, "answered")]
    theirs = [decision(0, gate=-0.5), decision(1, gate=-1.1), decision(2, "refused")]
    gate, outcome = find_flips(ours, theirs)
    assert (gate.id, gate.what, gate.pytorch, gate.onnx, gate.margin) == ("0", "gate", "open", "closed", 0.25)
    assert (outcome.id, outcome.what, outcome.pytorch, outcome.onnx) == ("2", "outcome", "answered", "refused")


def test_a_missing_score_is_a_flip():
    (flip,) = find_flips([decision(0, gate=1.0)], [decision(0)])
    assert (flip.pytorch, flip.onnx) == ("open", "missing")


def test_decisions_about_other_records_are_refused():
    with pytest.raises(UsageError, match="different records"):
        find_flips([decision(0)], [decision(1)])


def test_a_flipped_answer_is_listed_with_the_gap_where_it_parts(vlm, base_folder, make_adapter):
    """The adapted model against the bare graphs, so that the answers really part."""
    prompts = ("what is this thing ?", "describe it .", "how to use this ?", "is this dangerous ?")
    records = [Record(id=str(at), prompt=prompt, label="harmless", split="test") for at, prompt in enumerate(prompts)]
    adapter = make_adapter(*ITEMS)
    theirs = [decision(at, "refused" if at == 2 else "answered") for at in range(4)]
    ours = [decision(at, "answered") for at in range(4)]
    bare = OnnxVLM.from_pretrained(base_folder)
    report = check_parity(vlm, bare, [adapter], records=records, decisions=(ours, theirs), steps=1, max_new_tokens=4)
    (flip,) = report.flips
    assert (flip.id, flip.what) == ("2", "outcome")
    assert flip.margin is not None and flip.margin > 0


def test_a_flip_is_accepted_only_by_somebody_who_says_so(vlm, export, make_adapter):
    adapter = make_adapter(*ITEMS)
    good, theirs = export(adapter), [decision(at, "refused" if at == 2 else "answered") for at in range(4)]
    both = ([decision(at, "answered") for at in range(4)], theirs)
    with pytest.raises(ParityFailed, match="first decisions .*error 1, limit 0") as failed:
        check_parity(vlm, good, [adapter], decisions=both, steps=1).require()
    assert "2 (outcome: answered → refused)" in failed.value.next_step and "--max-flips" in failed.value.next_step
    report = check_parity(vlm, good, [adapter], decisions=both, steps=1, max_flips=0.25)
    report.require()
    assert report.tolerances.flips == 0.25 and len(report.flips) == 1
    with pytest.raises(ParityFailed):
        check_parity(vlm, good, [adapter], decisions=both, steps=1, max_flips=0.24).require()
