"""A baked op does exactly what the hook does, wherever it is put."""

import onnx_ir as ir
import pytest
import torch
from fusing import fused

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact, UnsupportedGraph, UsageError
from safetykit.export.commands.verification import verify_folder
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import require_movement
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place
from safetykit.export.surgery.bake import bake

MIXED = parity_requests()["4 rows padded, mixed"]


@pytest.fixture
def baked(vlm, base_folder, tmp_path):
    """Bake adapters onto the base in a new folder and open it."""

    def run(*adapters: Adapter, edit=None) -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        if edit is not None:
            ir.save(edit(ir.load(tmp_path / "decoder.onnx")), tmp_path / "decoder.onnx")
        manifest = adapt(tmp_path, base, adapters)
        require_movement(tmp_path, manifest, place(adapters))
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def assert_same(vlm, onnx_vlm, *adapters, requests=MIXED, steps=4):
    bare = compare_logits(vlm, onnx_vlm, requests, steps).logits
    with vlm.applied(*adapters):
        gap = compare_logits(vlm, onnx_vlm, requests, steps).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale
    assert bare.error > 100 * gap.error, "the adapter should matter here"


@pytest.mark.parametrize(
    "site",
    [
        "decoder.layers.0",
        "decoder.layers.2",
        "decoder.layers.1.attn",
        "decoder.layers.2.mlp",
        "final_norm",
        "logits",
        "projector",
        "vision",
    ],
)
def test_every_kind_of_site(vlm, baked, make_adapter, site):
    adapter = make_adapter(("SubspaceProjection", site, "all", "both"))
    assert_same(vlm, baked(adapter), adapter)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("scope", ["all", "vision", "text", "last"])
def test_every_scope_and_phase(vlm, baked, make_adapter, scope, phase):
    if (scope, phase) == ("vision", "decode"):
        pytest.skip("no picture arrives during decoding")
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", scope, phase))
    assert_same(vlm, baked(adapter), adapter)


@pytest.mark.parametrize("op", ["GatedSteering", "TargetSteering", "SupervisedSteering"])
def test_every_gated_op(vlm, baked, make_adapter, op):
    adapter = make_adapter((op, "decoder.layers.0", "last", "prefill"), (op, "decoder.layers.1", "last", "prefill"))
    assert_same(vlm, baked(adapter), adapter)


def test_two_adapters_at_one_site_act_in_order(vlm, baked, make_adapter):
    first = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    second = make_adapter(("GatedSteering", "decoder.layers.1", "all", "both"), seed=5)
    assert_same(vlm, baked(first, second), first, second)


def test_sites_of_one_layer_in_any_order(vlm, baked, make_adapter):
    sites = ["logits", "decoder.layers.1", "decoder.layers.1.mlp", "decoder.layers.1.attn", "projector"]
    adapter = make_adapter(*(("SubspaceProjection", site, "all", "both") for site in sites))
    assert_same(vlm, baked(adapter), adapter)


def test_each_adapted_layer_is_one_node_with_its_parameters(base_folder, make_adapter):
    adapter = make_adapter(
        ("SubspaceProjection", "decoder.layers.0", "last", "prefill"),
        ("SubspaceProjection", "decoder.layers.1", "last", "prefill"),
    )
    model = bake(ir.load(base_folder / "decoder.onnx"), "decoder", place([adapter]))
    nodes = [node for node in model.graph if node.domain == "safetykit"]
    assert [node.op_type for node in nodes] == ["ScopeMask_last_prefill", "SubspaceProjection", "SubspaceProjection"]
    assert [value.name for value in nodes[1].inputs[2:]] == [
        f"safetykit.0.{name}" for name in ("basis", "mean", "beta")
    ]


def test_weights_files_stay_as_they_are(base_folder, baked, make_adapter, tmp_path):
    baked(make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both")))
    for name in ("decoder.onnx.data", "vision_encoder.onnx.data", "embed_tokens.onnx.data"):
        assert (tmp_path / name).read_bytes() == (base_folder / name).read_bytes()


def test_an_adapted_graph_is_refused(base_folder, make_adapter):
    placed = place([make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))])
    model = bake(ir.load(base_folder / "decoder.onnx"), "decoder", placed)
    with pytest.raises(UnsupportedGraph, match="already holds a safetykit adapter"):
        bake(model, "decoder", placed)


@pytest.mark.parametrize(
    ("site", "scope", "phase", "message"),
    [
        ("decoder.layers.3", "all", "both", "the decoder has 3 layers"),
        ("projector", "all", "both", "not in the decoder graph"),
    ],
)
def test_a_site_that_is_not_there_is_refused(base_folder, make_adapter, site, scope, phase, message):
    placed = place([make_adapter(("SubspaceProjection", site, scope, phase))])
    with pytest.raises(UsageError, match=message):
        bake(ir.load(base_folder / "decoder.onnx"), "decoder", placed)


@pytest.mark.parametrize(("scope", "phase"), [("text", "both"), ("all", "decode")])
def test_a_vision_site_that_is_never_reached_is_refused(base_folder, make_adapter, scope, phase):
    placed = place([make_adapter(("SubspaceProjection", "projector", scope, phase))])
    with pytest.raises(UsageError, match="never applies at projector"):
        bake(ir.load(base_folder / "vision_encoder.onnx"), "vision_encoder", placed)


def test_an_adapter_without_effect_is_refused(baked, make_adapter):
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    still = Intervention(
        "SubspaceProjection",
        Site.block(1),
        "all",
        "both",
        {**adapter.interventions[0].tensors, "beta": torch.tensor(0.0)},
    )
    with pytest.raises(UsageError, match="Intervention 1 .*changes nothing"):
        baked(Adapter(adapter.info, (adapter.interventions[0], still)))


def with_tensors(adapter, **changes):
    (item,) = adapter.interventions
    tensors = {**item.tensors, **{name: torch.tensor(value) for name, value in changes.items()}}
    return Adapter(adapter.info, (Intervention(item.op, item.site, item.scope, item.phase, tensors),))


def test_a_gate_that_random_states_do_not_open_may_be_baked(baked, make_adapter):
    """A calibrated gate opens on harmful states, which random ones need not resemble."""
    adapter = make_adapter(("GatedSteering", "decoder.layers.1", "last", "prefill"))
    baked(with_tensors(adapter, threshold=1e9))


def test_a_gated_op_that_pushes_nowhere_is_refused(baked, make_adapter):
    adapter = make_adapter(("GatedSteering", "decoder.layers.1", "last", "prefill"))
    with pytest.raises(UsageError, match="Intervention 0 .*changes nothing"):
        baked(with_tensors(adapter, threshold=1e9, alpha=0.0))


def test_an_empty_adapter_is_refused_by_verify(make_adapter, tmp_path):
    empty = make_adapter().save(tmp_path / "empty")
    with pytest.raises(InvalidArtifact, match="changes nothing and detects nothing"):
        verify_folder(empty)


def test_an_empty_adapter_is_refused(baked, make_adapter):
    with pytest.raises(UsageError, match="nothing to bake"):
        baked(make_adapter())


def test_a_fused_skip_norm_is_adapted_without_unfusing(vlm, baked, make_adapter):
    """The same decoder with every Add and RMS norm fused, as GenAI-built graphs have it."""
    adapter = make_adapter(
        ("SubspaceProjection", "decoder.layers.0", "all", "both"),
        ("SubspaceProjection", "decoder.layers.1.mlp", "all", "both"),
        ("SubspaceProjection", "decoder.layers.1", "all", "both"),
        ("SubspaceProjection", "decoder.layers.2", "all", "both"),
    )
    assert_same(vlm, baked(adapter, edit=fused), adapter)
