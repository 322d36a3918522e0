"""Every family: its parts, sites and hooks, its three graphs, and an adapter in them, against PyTorch."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
from family_methods import METHODS, turns
from PIL import Image
from shared import once

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo, DetectorInfo
from safetykit.adapters.errors import UsageError
from safetykit.adapters.ops.branch import Branch
from safetykit.bench._types.building import NAMES as TYPES
from safetykit.bench.zoo import NAMES, WIDTH, build
from safetykit.export.base.own import export_base, save_graph
from safetykit.export.base.specs import graph_specs
from safetykit.export.base.tracing import export_graph
from safetykit.export.layouts.describe import interface_of, write_interface
from safetykit.export.layouts.prepare import program
from safetykit.export.manifest import GRAPHS, write_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import open_session
from safetykit.toolkit.data.captions import CaptionedPicture, captions_path, load_captions
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.families import exportable, family_names
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM


def picture(seed: int, width: int = 20, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


REQUESTS = [
    Request("what is this ?", picture(0)),
    Request("how do i use a knife ?"),
    Request("what is this thing ?", (picture(1, 40, 16), picture(2, 16, 30))),
    Request("describe this", picture(3, 70, 60)),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp("zoo") / name)
        return made[name]

    return get


@pytest.fixture(scope="module", params=NAMES)
def vlm(request, checkpoint) -> VLM:
    return VLM.from_pretrained(checkpoint(request.param))


def some_of(names, few):
    """All families; in CI those that see in ways of their own."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.exhaustive) for name in names]


def exported(test):
    """For tests that need a family's base graphs, which take their time to write.

    In CI not of ``llava``, which most other tests export, nor of those that another has all of: ``smolvlm`` is
    ``idefics3``, ``paligemma2`` attends like ``paligemma`` and more, ``qwen2_5_vl`` sees like ``qwen2_vl`` and more,
    ``llava_onevision`` cuts tiles like ``llava_next`` and pools them.
    """
    families = some_of(NAMES, {*NAMES} - {"llava", "llava_next", "smolvlm", "paligemma", "qwen2_vl"})
    return pytest.mark.slow(pytest.mark.parametrize("vlm", families, indirect=True)(test))


@pytest.fixture(scope="module")
def base_folder(vlm, tmp_path_factory):
    return once(tmp_path_factory, f"{vlm.path.name}-base", lambda folder: export_base(vlm, folder))


@pytest.fixture(scope="module")
def base(base_folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(base_folder)


@exported
def test_every_value_of_a_base_graph_has_a_type(base_folder):
    """Surgery copies nodes into branches, which must say the types of their outputs."""
    for name in GRAPHS:
        graph = ir.load(base_folder / f"{name}.onnx").graph
        assert not [value.name for node in graph for value in node.outputs if value.name and value.dtype is None]


def adapter(vlm: VLM, *items: Intervention, **more) -> Adapter:
    info = AdapterInfo(
        method="test",
        variant="test",
        sign_convention="none",
        hyperparameters={},
        seed=0,
        base=vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    return Adapter(info, items, **more)


def projection(vlm: VLM, site: Site, scope: str = "all") -> Intervention:
    """Removes two directions at ``site``."""
    generator = torch.Generator().manual_seed(sum(str(site).encode()))
    width = state_width(vlm, site)
    basis, _ = torch.linalg.qr(torch.randn(width, 2, generator=generator))
    mean = torch.randn(width, generator=generator)
    tensors = {"basis": basis, "mean": mean, "beta": torch.tensor(1.0)}
    return Intervention("SubspaceProjection", site, scope, "both", tensors)


def state_width(vlm: VLM, site: Site) -> int:
    if site.kind == "logits":
        return vlm.parts.head.weight.shape[0]
    if site.kind != "vision":
        return WIDTH
    seen = []
    handle = vlm.parts.module(site).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    vlm.see(vlm.inputs.prepare(REQUESTS[:1]))
    handle.remove()
    return seen[0]


def sites(vlm: VLM) -> list[Site]:
    return [site for site in vlm.parts.sites() if site.layer in (None, 1)]


def test_every_block_is_its_input_and_its_branches(vlm):
    for site in (site for site in vlm.parts.sites() if site.kind in ("attn", "mlp")):
        vlm.parts.tap(site)  # is refused where they do not add up


def test_every_family_has_a_checkpoint():
    assert set(family_names()) <= {*NAMES, *TYPES}


def test_parts_are_found_and_it_can_be_exported(vlm):
    described = vlm.describe()
    assert described["n_layers"] == 2 and described["d_model"] == WIDTH
    assert all(described["parts"].values())
    name = vlm.model.config.model_type
    grouped = "some tokens see later ones, and the operator is causal" if name in ("gemma3", "paligemma") else None
    graphs = dict.fromkeys(GRAPHS)
    expected = {"supported": True, "family": name, "reason": None, "attention": grouped, "graphs": graphs}
    assert exportable(vlm.model.config) == expected


def test_pictures_count_each_in_its_own_row(vlm):
    logits, inputs = vlm.prefill(REQUESTS)
    assert (inputs.vision_mask.any(axis=1) == [bool(request.pictures) for request in REQUESTS]).all()
    changed = list(REQUESTS)
    changed[2] = Request(REQUESTS[2].prompt, (REQUESTS[2].pictures[0], picture(9, 16, 30)))
    moved = (vlm.prefill(changed)[0] - logits)[:, -1].abs().amax(dim=1)
    assert moved[2] > 1e-2 and moved[[0, 1, 3]].max() < 1e-5


def test_padding_changes_nothing(vlm):
    logits, _ = vlm.prefill(REQUESTS)
    for row, request in enumerate(REQUESTS):
        alone, _ = vlm.prefill([request])
        assert (alone[0, -1] - logits[row, -1]).abs().max() < 1e-4


def test_hooks_act_at_every_site_and_leave_no_trace(vlm):
    before, _ = vlm.prefill(REQUESTS)
    for site in sites(vlm):
        with vlm.applied(adapter(vlm, projection(vlm, site))):
            assert (vlm.prefill(REQUESTS)[0] - before)[0, -1].abs().max() > 1e-3, site
    assert torch.equal(vlm.prefill(REQUESTS)[0], before)


def test_a_branch_site_is_what_is_added_to_the_stream(vlm):
    layer = vlm.parts.layers[1]
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _, args, output: seen.__setitem__(name, output if torch.is_tensor(output) else output[0])

    handles = [vlm.parts.module(Site(kind, 1)).register_forward_hook(keep(kind)) for kind in ("attn", "mlp", "block")]
    handles.append(
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.__setitem__("in", args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    )
    vlm.prefill(REQUESTS)
    for handle in handles:
        handle.remove()
    assert torch.allclose(seen["in"] + seen["attn"] + seen["mlp"], seen["block"], atol=1e-4)


@exported
@pytest.mark.parametrize("case", [*parity_requests(several=True), "all at once"])
def test_base_graphs_compute_what_pytorch_computes(vlm, base, case):
    requests = {**parity_requests(several=vlm.inputs.family.several), "all at once": REQUESTS}
    if case not in requests:
        pytest.skip("one picture a prompt")
    gap = compare_logits(vlm, base, requests[case], steps=6).logits
    assert gap.error <= 1e-5 * gap.scale


@pytest.mark.slow
@pytest.mark.parametrize("vlm", some_of(NAMES, ("idefics3", "llava_onevision", "qwen2_5_vl")), indirect=True)
def test_the_vision_graph_in_half_precision_stays_near(vlm, tmp_path):
    save_graph(export_graph(graph_specs(vlm.model)["vision_encoder"], "fp16"), tmp_path / "vision.onnx")
    session = open_session(tmp_path / "vision.onnx")
    family, inputs = vlm.inputs.family, vlm.inputs.prepare(REQUESTS[:1])
    features = session.run(None, family.vision_feeds(vlm.inputs.config, inputs.pictures))[0].astype(np.float32)
    with torch.no_grad():
        real = torch.cat([one.reshape(-1, WIDTH) for one in vlm.see(inputs).pooler_output]).numpy()
    assert np.abs(features.reshape(-1, WIDTH) - real).max() < 0.02 * np.abs(real).max()


@exported
def test_both_generate_the_same(vlm, base):
    theirs = [answer.token_ids for answer in base.generate(REQUESTS, 8)]
    assert [answer.token_ids for answer in vlm.generate(REQUESTS, 8)] == theirs


# What of a family the program beside an export does not prepare; those that are not here, it runs.
WITHOUT_PROGRAM = {
    "internvl": "other pixels",
    "llava_next": "packing_index",
    "llava_onevision": "packing_index",
    **dict.fromkeys(("idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "longest_edge"),
}


@exported
def test_prompts_in_chunks_are_what_they_are_whole(base, monkeypatch):
    """Whatever a family's decoder takes beside the embeddings; families whose tokens see later ones refuse."""
    requests = [one for one in REQUESTS if base.inputs.family.several or len(one.pictures) < 2]
    if base.inputs.family.token_types is not None:
        with pytest.raises(UsageError, match="see later ones in this family"):
            base.chunk_prompts(7)
        return
    whole = base.step(base.prefill_requests(requests), [5] * len(requests))
    monkeypatch.setattr(base, "_chunk", None)
    base.chunk_prompts(7)
    chunked = base.step(base.prefill_requests(requests), [5] * len(requests))
    assert np.abs(chunked.logits - whole.logits).max() < 1e-4


@exported
def test_rows_that_join_a_batch_get_what_they_get_alone(base):
    """Whatever a family's decoder takes beside the embeddings, and wherever its cache has its padding."""
    requests = [one for one in REQUESTS if base.inputs.family.several or len(one.pictures) < 2]
    token = base.inputs.eos_token_ids[0]
    alone = [base.step(base.prefill_requests([one]), [token]) for one in requests]
    first, *others = (base.prefill_requests([one]) for one in requests)
    batch = base.join([(one, [0]) for one in (base.step(first, [token]), *others)])
    fed = base.step(batch, [token] * len(requests))  # the first row's second token, the others' first
    for at, one in enumerate(alone[1:], 1):
        assert np.abs(fed.logits[at] - one.logits[0]).max() < 1e-4
    kept = base.join([(fed, [0, 2])])
    expected = [base.step(base.step(alone[0], [token]), [token]), base.step(alone[2], [token])]
    for found, one in zip(base.step(kept, [token, token]).logits, expected, strict=True):
        assert np.abs(found - one.logits[0]).max() < 1e-4


@exported
def test_the_program_beside_an_export_answers_the_same_or_says_why_it_cannot(vlm, base, base_folder, tmp_path):
    found = interface_of(base_folder, base.manifest, vlm.inputs)
    if reason := WITHOUT_PROGRAM.get(vlm.model.config.model_type):
        assert found.program is None and reason in found.no_program, found.no_program
        return
    assert found.no_program is None
    shutil.copytree(base_folder, tmp_path / "export")
    write_interface(tmp_path / "export", base.manifest, vlm.inputs)
    write_manifest(base.manifest, tmp_path / "export")
    alone = program().Model(tmp_path / "export")
    for request in [one for one in REQUESTS if len(one.pictures) < 2]:
        answer = alone.answer(request.prompt, request.image and request.pictures[0], 8)
        assert answer["text"] == base.generate(request, 8).text


@exported
def test_adapters_go_in_at_every_kind_of_site_beside_a_detector(vlm, base_folder, tmp_path):
    items = [projection(vlm, site, scope="vision" if site.kind == "block" else "all") for site in sites(vlm)]
    weight = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)) / WIDTH**0.5
    probe = {"weight": weight, "bias": torch.tensor(0.1)}
    branch = Branch("FusedProjection", Site.block(0), Site.block(1), probe)
    detector = DetectorInfo(threshold=0.0, refusal="sorry", refusal_token=7)
    adapters = [adapter(vlm, *items), adapter(vlm, branch=branch, detector=detector)]
    result = export_onnx(vlm, adapters, tmp_path / "out", base_onnx=base_folder, allow_uncorrected_detector=True)
    checked = {check.kind for check in result.parity.checks}
    assert {"logits", "adapter-off", "op", "invariant", "risk"} <= checked
    assert any("several" in check.case for check in result.parity.checks) == vlm.inputs.family.several
    assert result.manifest.family == vlm.model.config.model_type


@pytest.fixture(scope="session")
def records() -> list[Record]:
    found = load_records(data_path("reference"), ["fit", "calibration", "test"])
    kept = {"fit": 96, "calibration": 60, "test": 6}
    return [one for split, count in kept.items() for one in subset([one for one in found if one.split == split], count)]


@pytest.fixture(scope="session")
def captions() -> list[CaptionedPicture]:
    return load_captions(captions_path("reference"))[::120]


@pytest.mark.slow
@pytest.mark.parametrize(("vlm", "methods"), turns(), indirect=["vlm"])
def test_every_method_fits_and_bakes_without_a_flipped_decision(vlm, base_folder, records, captions, tmp_path, methods):
    """On random weights nothing is learnt; what is fitted must still be what the graphs compute."""
    if "closed form" in methods and vlm.model.config.model_type == "gemma3":
        with pytest.raises(UsageError, match="does not end in a linear layer"):  # but in a product with a plain matrix
            METHODS[methods](vlm, records, captions)
        return
    adapters = METHODS[methods](vlm, records, captions)
    asked = [record for record in records if record.split == "test"]
    result = export_onnx(vlm, adapters, tmp_path / "out", base_onnx=base_folder, records=asked, max_new_tokens=6)
    assert result.parity.passed and not result.parity.flips
    assert "decisions" in {check.kind for check in result.parity.checks}
