"""A forked graph judges like PyTorch, answers as if it were not forked, and refuses what it should."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from forking import CASES, MIXED, N_LAYERS, STEPS, assert_same_risk, forked_exports

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact
from safetykit.adapters.ops.branch import Branch
from safetykit.export.base.own import export_base
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.runtime.answer import answer
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return forked_exports(vlm, base_folder, tmp_path)


@pytest.fixture(scope="module")
def bare(base_folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(base_folder)


@pytest.mark.slow
@pytest.mark.parametrize(("safety", "fused"), [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)])
def test_the_graph_judges_like_pytorch(vlm, export, make_detector, safety, fused):
    adapter = make_detector(safety, fused)
    onnx_vlm = export(adapter)
    assert_same_risk(vlm, onnx_vlm, adapter)
    assert onnx_vlm.block_evaluations == (fused + 1) + (N_LAYERS - 1 - safety) + (N_LAYERS - 1 - fused)
    assert onnx_vlm.manifest.branch.blocks == onnx_vlm.block_evaluations


def test_the_answer_is_bit_for_bit_that_of_the_unforked_graph(export, bare, make_detector):
    forked = export(make_detector())
    for batch in CASES.values():
        ours, theirs = forked.prefill_requests(batch), bare.prefill_requests(batch)
        for step in range(3):
            assert np.array_equal(ours.logits, theirs.logits)
            assert all(np.array_equal(ours.past[name], theirs.past[name]) for name in theirs.past)
            tokens = np.arange(len(batch)) + step + 5
            ours, theirs = forked.step(ours, tokens), bare.step(theirs, tokens)


def feeds_of(onnx_vlm, requests):
    """What the runtime feeds the decoder at prefill, for a session of one's own."""
    fed = []
    run = onnx_vlm._decoder.run
    onnx_vlm._decoder.run = lambda names, feeds: fed.append(feeds) or run(names, feeds)
    onnx_vlm.prefill_requests(requests)
    return fed[-1]


def test_the_branch_runs_at_prefill_only(export, make_detector, tmp_path):
    """By the runtime's own profile, not by the graph: kernels with names of copies."""
    onnx_vlm = export(make_detector())
    feeds = feeds_of(onnx_vlm, MIXED)
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"), options)
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(names, feeds), strict=True))
    assert np.isfinite(results["risk_score"]).all()
    past = {name.replace("present.", "past_key_values."): results[name] for name in names if "present." in name}
    length = past["past_key_values.0.key"].shape[2]
    later = {
        "inputs_embeds": feeds["inputs_embeds"][:, -1:],
        "attention_mask": np.ones((len(MIXED), length + 1), np.int64),
        "position_ids": np.full((len(MIXED), 1), length),
        **past,
    }
    for _ in range(3):
        (risk,) = session.run(["risk_score"], later)
        assert np.isnan(risk).all()
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    products = [event["name"] for event in kernels if event["args"]["op_name"] == "MatMul"]
    copies = [name for name in products if name.startswith("safetykit.branch/")]
    own = [name for name in products if not name.startswith("safetykit.branch")]
    assert copies and len(copies) == len(set(copies)), "each copied product ran once in four runs"
    assert max(own.count(name) for name in own) == 4


def test_copies_read_the_weights_of_their_originals(base_folder, export, make_detector, tmp_path):
    export(make_detector())
    assert (tmp_path / "decoder.onnx.data").read_bytes() == (base_folder / "decoder.onnx.data").read_bytes()
    before, after = (set(ir.load(folder / "decoder.onnx").graph.initializers) for folder in (base_folder, tmp_path))
    assert after - before == {f"safetykit.branch.{name}" for name in ("weight", "bias", "zero", "one", "nan", "inf")}


def test_a_prompt_of_32_layers_takes_50_block_evaluations(make_detector):
    branch = make_detector().branch
    paper = Branch(branch.op, Site.block(13), Site.block(15), branch.tensors)
    assert paper.blocks(32) == 50


STACKS = {
    "before s": [("GatedSteering", "decoder.layers.0", "last", "prefill")],
    "at f and after": [
        ("SubspaceProjection", "decoder.layers.1", "all", "both"),
        ("GatedSteering", "decoder.layers.2", "last", "prefill"),
    ],
    "branches and the final norm": [
        ("SubspaceProjection", "decoder.layers.1.attn", "all", "both"),
        ("SubspaceProjection", "decoder.layers.2.mlp", "text", "prefill"),
        ("SubspaceProjection", "final_norm", "all", "both"),
    ],
    "the logits": [("SubspaceProjection", "logits", "last", "both")],
    "supervised": [("SupervisedSteering", "decoder.layers.1", "last", "prefill")],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STACKS)
def test_the_branch_runs_the_blocks_as_correctors_made_them(vlm, export, make_adapter, make_detector, what):
    corrector, detector = make_adapter(*STACKS[what]), make_detector()
    onnx_vlm = export(corrector, detector)
    check_parity(vlm, onnx_vlm, [corrector, detector], steps=STEPS).require()
    assert not any(name.startswith("safetykit.branch") for name in onnx_vlm.manifest.graphs["decoder"].outputs)
    if what != "the logits":
        with vlm.applied(detector) as hooks:
            vlm.prefill(MIXED)
        plain = hooks.extras["risk"].numpy()
        assert np.abs(plain - onnx_vlm.prefill_requests(MIXED).extras["risk"]).max() > 1e-2, "the corrector matters"


@pytest.mark.slow
@pytest.mark.parametrize("site", ["decoder.layers.0", "decoder.layers.2.mlp", "final_norm"])
def test_a_probe_on_one_site_is_a_detector_too(vlm, export, bare, make_probe, split_risks, site):
    adapter, wanted = split_risks(make_probe(site), MIXED)
    onnx_vlm = export(adapter, enforce=True)
    check_parity(vlm, onnx_vlm, [adapter], base=bare, steps=STEPS).require()
    assert [answer.refused for answer in onnx_vlm.generate(MIXED, 4)] == wanted
    assert onnx_vlm.block_evaluations == N_LAYERS


def test_a_probe_stacks_with_correctors_at_its_site(vlm, export, make_adapter, make_probe):
    first = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    last = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"), seed=4)
    adapters = first, make_probe(), last
    check_parity(vlm, export(*adapters), adapters, steps=STEPS).require()


def test_rows_that_are_refused_leave_the_others_as_they_are(vlm, export, bare, make_detector, split_risks):
    adapter, wanted = split_risks(make_detector(), MIXED)
    assert any(wanted) and not all(wanted)
    answers, unmodified = export(adapter).generate(MIXED, 8), bare.generate(MIXED, 8)
    with vlm.applied(adapter):
        ours = vlm.generate(MIXED, 8)
    for refused, got, own, plain in zip(wanted, answers, ours, unmodified, strict=True):
        assert got.refused == own.refused == refused == (got.scores["risk"] > 0)
        assert got.scores["risk"] == pytest.approx(own.scores["risk"], abs=1e-4)
        assert got.text == own.text and got.token_ids == own.token_ids
        if refused:
            assert got.text == "do not use this thing"
        else:
            assert (got.text, got.token_ids) == (plain.text, plain.token_ids)


def test_a_batch_that_is_refused_whole_is_not_decoded(export, make_detector, monkeypatch):
    onnx_vlm = export(make_detector(threshold=-1e6))
    monkeypatch.setattr(onnx_vlm, "step", lambda *_: pytest.fail("a step was taken"))
    assert all(answer.refused for answer in onnx_vlm.generate(MIXED, 8))


def test_a_risk_that_is_no_number_is_not_answered(export, make_detector, monkeypatch):
    onnx_vlm = export(make_detector())
    prefill = onnx_vlm.prefill

    def broken(*given, **asked):
        state = prefill(*given, **asked)
        state.extras["risk"][1] = np.nan
        return state

    monkeypatch.setattr(onnx_vlm, "prefill", broken)
    with pytest.raises(InvalidArtifact, match="not a number, so it is not answered"):
        onnx_vlm.generate(MIXED, 2)


def greedy(path, feeds, steps, embed):
    """What a runtime does that knows nothing of detectors: the best token, fed again."""
    session = onnxruntime.InferenceSession(str(path / "decoder.onnx"))
    names = [value.name for value in session.get_outputs()]
    found = []
    for _ in range(steps):
        results = dict(zip(names, session.run(names, feeds), strict=True))
        chosen = results["logits"][:, -1].argmax(-1)
        found.append(chosen)
        mask = np.concatenate([feeds["attention_mask"], np.ones((len(chosen), 1), np.int64)], 1)
        past = {name.replace("present.", "past_key_values."): results[name] for name in names if "present." in name}
        feeds = {
            "inputs_embeds": embed.run(None, {"input_ids": chosen[:, None]})[0],
            "attention_mask": mask,
            "position_ids": mask.sum(1, keepdims=True) - 1,
            **past,
        }
    return np.stack(found, 1)


def test_an_enforcing_graph_refuses_by_itself(export, bare, make_detector, split_risks):
    adapter, wanted = split_risks(make_detector(), MIXED)
    onnx_vlm = export(adapter, enforce=True)
    tokens = greedy(onnx_vlm.path, feeds_of(onnx_vlm, MIXED), 4, onnx_vlm._embed)
    unmodified = greedy(bare.path, feeds_of(OnnxVLM.from_pretrained(bare.path), MIXED), 4, bare._embed)
    for row, refused in enumerate(wanted):
        assert tokens[row, 0] == 24 if refused else np.array_equal(tokens[row], unmodified[row])
    assert 24 not in unmodified[:, 0]


def test_enforcing_changes_the_last_position_of_refused_rows_alone(export, bare, make_detector, split_risks):
    adapter, wanted = split_risks(make_detector(), MIXED)
    ours, theirs = (model.prefill_requests(MIXED).logits for model in (export(adapter, enforce=True), bare))
    assert np.array_equal(ours[:, :-1], theirs[:, :-1])
    assert np.array_equal(ours[~np.array(wanted), -1], theirs[~np.array(wanted), -1])
    assert np.isfinite(ours.astype(np.float16)).all()


def test_enforcing_exports_pass_parity(vlm, export, bare, make_detector, split_risks):
    adapter, _ = split_risks(make_detector(), MIXED)
    report = check_parity(vlm, export(adapter, enforce=True), [adapter], base=bare, steps=STEPS)
    report.require()
    assert any(check.case.endswith("forced logits") for check in report.checks)


def test_what_an_answer_says_about_its_risk(export, make_detector, split_risks):
    text = [request for request in MIXED if request.image is None]
    adapter, wanted = split_risks(make_detector(), text)
    folder = export(adapter).path
    from safetykit.export.manifest import write_manifest

    write_manifest(read_manifest(folder, verify=False), folder)
    found = answer(folder, [request.prompt for request in text], [], max_new_tokens=4)
    for refused, item in zip(wanted, found, strict=True):
        assert item["refused"] == refused == (item["risk"] > item["threshold"])
        assert item["threshold"] == adapter.detector.threshold
        json.dumps(item)


@pytest.mark.slow
def test_half_precision_judges_alike_and_survives_outliers(vlm, make_adapter, make_detector, tmp_path):
    """States of some hundreds, as large models have: their squares overflow float16, the risk must not."""
    corrector = make_adapter(("GatedSteering", "decoder.layers.0", "last", "prefill"))
    adapters = corrector, make_detector()
    base = export_base(vlm, tmp_path, "fp16")
    manifest = adapt(tmp_path, base, adapters)
    half = OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])
    check_parity(vlm, half, adapters, steps=STEPS).require()
    feeds = feeds_of(half, MIXED)
    feeds["inputs_embeds"] = feeds["inputs_embeds"] / np.abs(feeds["inputs_embeds"]).max() * np.float16(2000)
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"))
    (risk,) = session.run(["risk_score"], feeds)
    assert np.isfinite(risk).all() and np.ptp(risk) > 1e-3
    assert np.abs(risk - risk_of_embeddings(vlm, adapters, feeds)).max() <= 1e-2 * max(1, np.abs(risk).max())


@torch.no_grad()
def risk_of_embeddings(vlm, adapters, feeds):
    """PyTorch's risk in float32 for a prompt that is given as embeddings."""
    arguments = {name: torch.from_numpy(feeds[name]) for name in ("attention_mask", "position_ids")}
    with vlm.applied(*adapters) as hooks:
        vlm.model(inputs_embeds=torch.from_numpy(feeds["inputs_embeds"]).float(), use_cache=False, **arguments)
    return hooks.extras["risk"].numpy()
