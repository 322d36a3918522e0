"""The gate passes good exports and stops every bad one we could think of."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.adapter import Adapter
from safetykit.adapters.errors import InvalidArtifact, ParityFailed, UsageError
from safetykit.adapters.sites import Site
from safetykit.export.adapt import adapt, copy_base
from safetykit.export.compare import Gap, parity_requests
from safetykit.export.layout import read_manifest
from safetykit.export.parity import TOLERANCES, ParityReport, Tolerance, check_parity, find_flips
from safetykit.export.runtime import OnnxVLM
from safetykit.toolkit.evaluate import Decision
from safetykit.toolkit.records import Record

STEPS = 3
# The adapter that should have been exported: one ungated op, one gated one with a score.
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("TargetSteering", "decoder.layers.1", "last", "prefill"),
)


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    """Write an export of some adapters, then let a test spoil its graphs."""

    def run(*adapters: Adapter, spoil=None, graph="decoder") -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, adapters) if adapters else base
        if spoil is not None:
            model = ir.load(tmp_path / f"{graph}.onnx")
            spoil(model)
            ir.save(model, tmp_path / f"{graph}.onnx")
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

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
    node = ir.node("Add", [mask, one])
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
}


def test_a_good_export_passes(vlm, export, base_folder, make_adapter):
    adapter = make_adapter(*ITEMS)
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


@pytest.mark.slow
def test_a_hundred_random_good_exports_raise_no_alarm(vlm, export, make_adapter):
    random = np.random.default_rng(0)
    ops = ("SubspaceProjection", "GatedSteering", "TargetSteering", "SupervisedSteering")
    sites = [str(site) for site in vlm.parts.sites() if site.kind not in ("vision", "projector", "logits")]
    for seed in range(100):
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
