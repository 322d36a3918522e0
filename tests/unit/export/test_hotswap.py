"""Swapping adapters on live sessions: the defaults are the bake, a swap is the other bake, and nothing fails open."""

import dataclasses

import pytest
import torch
from swapping import ITEMS, MIXED, gap, logits, same, swappable_exports

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import UsageError
from safetykit.export.commands.evaluation import evaluate_model
from safetykit.export.commands.verification import verify_folder
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_logits
from safetykit.export.parity.swap_check import check_swap
from safetykit.export.parity.swapped import with_parameters
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.answer import answer
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Request


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return swappable_exports(vlm, base_folder, tmp_path)


def test_the_defaults_are_the_fitted_values(export, make_adapter):
    """Nobody feeds anything, and the adapter is there."""
    adapter = make_adapter(*ITEMS)
    assert gap(logits(export(adapter)), logits(export(adapter, mode="bake"))) < 1e-6


def test_feeding_the_defaults_changes_no_bit(export, make_adapter):
    adapter = make_adapter(*ITEMS)
    onnx_vlm = export(adapter)
    before = logits(onnx_vlm)
    onnx_vlm.swap(adapter)
    assert same(before, logits(onnx_vlm))


def test_there_and_back_again_changes_no_bit_and_there_is_the_other_bake(export, make_adapter):
    first, second = make_adapter(*ITEMS, seed=1), make_adapter(*ITEMS, seed=2)
    onnx_vlm = export(first)
    onnx_vlm.swap(first)
    before = logits(onnx_vlm)
    onnx_vlm.swap(second)
    there = logits(onnx_vlm)
    assert gap(there, logits(export(second, mode="bake"))) < 1e-6
    assert gap(there, before) > 1e-2
    onnx_vlm.swap(first)
    assert same(before, logits(onnx_vlm))
    onnx_vlm.reset()
    assert same(before, logits(onnx_vlm)) and onnx_vlm.swapped is None


@pytest.mark.parametrize("rank", [1, 7])
def test_an_adapter_of_another_rank_is_swapped_in(vlm, export, make_adapter, rank):
    first, second = make_adapter(*ITEMS, rank=3), make_adapter(*ITEMS, rank=rank, seed=5)
    onnx_vlm = export(first)
    onnx_vlm.swap(second)
    with vlm.applied(second):
        found = compare_logits(vlm, onnx_vlm, MIXED, 3).logits
    assert found.error <= 1e-5 * found.scale


def test_parity_holds_for_the_defaults_and_for_a_swapped_adapter(vlm, base_folder, export, make_adapter):
    first, second = make_adapter(*ITEMS, seed=1), make_adapter(*ITEMS, seed=2, rank=4)
    onnx_vlm = export(first)
    base = OnnxVLM.from_pretrained(base_folder)
    check_parity(vlm, onnx_vlm, [first], base=base, steps=3).require()
    onnx_vlm.swap(second)
    check_parity(vlm, onnx_vlm, [second], steps=3).require()
    failed = check_parity(vlm, onnx_vlm, [first], steps=3)
    assert not failed.passed, "parity must see which adapter runs"


def test_every_source_gives_the_same(export, make_adapter, tmp_path):
    """An adapter, its folder, an export of it, and the files for ONNX Runtime."""
    first, second = make_adapter(*ITEMS, seed=1), make_adapter(*ITEMS, seed=2)
    onnx_vlm, other = export(first), export(second)
    second.save(tmp_path / "adapter")
    onnx_vlm.swap(second)
    expected = logits(onnx_vlm)
    files = [other.path / f"{name}.onnx_adapter" for name in ("decoder", "vision_encoder")]
    for sources in ([tmp_path / "adapter"], [other.path], files, files[::-1]):
        onnx_vlm.reset()
        onnx_vlm.swap(*sources)
        assert same(expected, logits(onnx_vlm))


def test_stacked_adapters_are_swapped_in_their_order(export, make_adapter):
    one, two = make_adapter(ITEMS[0], seed=1), make_adapter(ITEMS[1], seed=2)
    three, four = make_adapter(ITEMS[0], seed=3), make_adapter(ITEMS[1], seed=4)
    onnx_vlm = export(one, two)
    onnx_vlm.swap(three, four)
    assert gap(logits(onnx_vlm), logits(export(three, four, mode="bake"))) < 1e-6
    with pytest.raises(UsageError, match="the op of intervention 0 is TargetSteering"):
        onnx_vlm.swap(four, three)
    with pytest.raises(UsageError, match="it has 1 interventions, the export 2"):
        onnx_vlm.swap(three)


def with_low_rank(vlm, adapter: Adapter, names: list[str], rank: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for name in names:
        out, width = vlm.model.get_parameter(name).shape
        up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, width, generator=generator)
        updates.append(WeightUpdate(name, {"up": up * 0.2, "down": down * 0.2}))
    return dataclasses.replace(adapter, updates=tuple(updates))


LAYERS = [
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.layers.1.mlp.down_proj.weight",
    "model.multi_modal_projector.linear_1.weight",
    "lm_head.weight",
]


def test_low_rank_updates_stay_apart_from_the_weights(vlm, base_folder, export, make_adapter):
    first = with_low_rank(vlm, make_adapter(ITEMS[0]), LAYERS, 2, seed=1)
    second = with_low_rank(vlm, make_adapter(ITEMS[0], seed=9), LAYERS, 5, seed=2)
    onnx_vlm = export(first)
    assert {f"safetykit.{name}.up" for name in LAYERS} <= {one.name for one in onnx_vlm.manifest.parameters}
    assert (onnx_vlm.path / "decoder.onnx.data").read_bytes() == (base_folder / "decoder.onnx.data").read_bytes()
    for adapter in (first, second):
        onnx_vlm.swap(adapter)
        with vlm.applied(adapter):
            found = compare_logits(vlm, onnx_vlm, MIXED, 3).logits
        assert found.error <= 1e-5 * found.scale
    with pytest.raises(UsageError, match="only one of them changes"):
        onnx_vlm.swap(dataclasses.replace(second, updates=second.updates[:2]))


def with_values(vlm, adapter: Adapter, seed: int) -> Adapter:
    """New values for a square weight, another and a bias, as training the projector leaves them."""
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
        old = vlm.model.get_parameter(f"model.multi_modal_projector.{name}").detach()
        value = old + 0.1 * torch.randn(old.shape, generator=generator)
        updates.append(WeightUpdate(f"model.multi_modal_projector.{name}", {"value": value}))
    return dataclasses.replace(adapter, updates=tuple(updates))


def test_new_values_of_weights_are_swapped(vlm, export, make_adapter):
    first, second = (with_values(vlm, make_adapter(), seed) for seed in (1, 2))
    onnx_vlm = export(first)
    for adapter in (first, second):
        onnx_vlm.swap(adapter)
        with vlm.applied(adapter):
            found = compare_logits(vlm, onnx_vlm, MIXED, 2).logits
        assert found.error <= 1e-5 * found.scale


@pytest.mark.slow
@pytest.mark.parametrize("enforce", [False, True])
def test_a_detector_is_swapped_with_its_threshold_and_words(vlm, export, make_detector, split_risks, requests, enforce):
    first, _ = split_risks(make_detector(seed=1), requests)
    second, refused = split_risks(make_detector(seed=2), requests)
    words = second.detector.model_copy(update={"refusal": "what is this ?", "refusal_token": 9})
    second = dataclasses.replace(second, detector=words)
    onnx_vlm = export(first, enforce=enforce)
    onnx_vlm.swap(second)
    answers = onnx_vlm.generate(requests, 4)
    assert [answer.refused for answer in answers] == refused
    assert {answer.text for answer in answers if answer.refused} == {"what is this ?"}
    check_parity(vlm, onnx_vlm, [second], steps=2).require()
    assert not check_parity(vlm, onnx_vlm, [first], steps=2).passed
    with pytest.raises(UsageError, match="does not say when to refuse"):
        onnx_vlm.swap(onnx_vlm.path / "decoder.onnx_adapter")


@pytest.mark.slow
def test_held_gates_are_swapped(vlm, export, make_adapter):
    def held(seed):
        adapter = make_adapter(("TargetSteering", "decoder.layers.1", "all", "both"), seed=seed)
        items = tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
        return dataclasses.replace(adapter, interventions=items)

    for state in ("inputs", "cache"):
        onnx_vlm = export(held(1), gate_state=state)
        onnx_vlm.swap(held(2))
        with vlm.applied(held(2)):
            found = compare_logits(vlm, onnx_vlm, MIXED, 3).logits
        assert found.error <= 1e-5 * found.scale
        with pytest.raises(UsageError, match="the gate of intervention 0 is per-token, the export's is held"):
            onnx_vlm.swap(make_adapter(("TargetSteering", "decoder.layers.1", "all", "both")))


@pytest.mark.slow
def test_the_commands_swap_what_they_are_given(vlm, base_folder, make_adapter, tmp_path):
    """Export with mode hot-swap, then `run` and `verify` as the command line calls them."""
    adapters = {"own": make_adapter(*ITEMS, seed=1), "other": make_adapter(*ITEMS, seed=2, rank=4)}
    for name, adapter in adapters.items():
        adapter.save(tmp_path / name)
    out = tmp_path / "out"
    export_onnx(vlm, [adapters["own"]], out, mode="hot-swap", base_onnx=base_folder)
    manifest = read_manifest(out)
    assert {"decoder.onnx_adapter", "vision_encoder.onnx_adapter"} <= set(manifest.files)
    answers = [answer(out, ["describe it ."], [], max_new_tokens=6, swap=swap) for swap in ([], [tmp_path / "other"])]
    scores = [found[0]["scores"]["1.score"] for found in answers]
    with vlm.applied(adapters["other"]):
        (expected,) = vlm.generate([Request("describe it .")], 6)
    assert answers[1][0]["text"] == expected.text and scores[1] == pytest.approx(expected.scores["1.score"], abs=1e-4)
    assert scores[0] != scores[1]
    report = verify_folder(out, str(vlm.path), [tmp_path / "own"], swap=[tmp_path / "other"])
    assert report["parity"]["passed"] and report["swap"]["passed"]
    assert [check["error"] for check in report["swap"]["checks"] if check["kind"] == "swap"] == [0.0]
    with pytest.raises(UsageError, match="needs the checkpoint"):
        verify_folder(out, None, [], swap=[tmp_path / "other"])
    with pytest.raises(UsageError, match="A checkpoint has no adapter to swap"):
        evaluate_model(str(vlm.path), data="reference", swap=[tmp_path / "other"])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["an export", "its files"])
def test_parity_of_a_swap_is_checked_for_whatever_can_be_swapped_in(vlm, export, make_adapter, source):
    """An export and its files hold numbers only: PyTorch gets them in the places of the own adapter's."""
    first = with_low_rank(vlm, make_adapter(*ITEMS, seed=1), LAYERS, 2, seed=1)
    second = with_low_rank(vlm, make_adapter(*ITEMS, seed=2, rank=4), LAYERS, 5, seed=2)
    onnx_vlm, other = export(first), export(second)
    files = [other.path / f"{name}.onnx_adapter" for name in ("decoder", "vision_encoder")]
    sources = [other.path] if source == "an export" else files
    report = check_swap(vlm, onnx_vlm, sources, own=[first], steps=2)
    report.require()
    onnx_vlm.swap(*sources)
    (rebuilt,) = with_parameters([first], onnx_vlm.manifest, onnx_vlm.swapped)
    for ours, theirs in zip(rebuilt.interventions, second.interventions, strict=True):
        for name, tensor in theirs.tensors.items():
            assert torch.equal(ours.tensors[name], tensor)
    products = [
        {one.parameter: one.tensors["up"] @ one.tensors["down"] for one in some.updates} for some in (rebuilt, second)
    ]
    assert products[0].keys() == products[1].keys()
    assert all(torch.allclose(products[0][name], products[1][name], atol=1e-6) for name in products[0])


def test_new_values_are_rebuilt_from_an_export(vlm, export, make_adapter):
    first, second = (with_values(vlm, make_adapter(), seed) for seed in (1, 2))
    onnx_vlm, other = export(first), export(second)
    check_swap(vlm, onnx_vlm, [other.path], own=[first], steps=2).require()


def test_a_detector_is_rebuilt_from_an_export(vlm, export, make_detector, split_risks, requests):
    first, _ = split_risks(make_detector(seed=1), requests)
    second, _ = split_risks(make_detector(seed=2), requests)
    onnx_vlm, other = export(first, enforce=True), export(second, enforce=True)
    check_swap(vlm, onnx_vlm, [other.path], own=[first], steps=2).require()
    onnx_vlm.swap(other.path)
    (rebuilt,) = with_parameters([first], onnx_vlm.manifest, onnx_vlm.swapped)
    assert rebuilt.detector == second.detector
    assert torch.equal(rebuilt.branch.tensors["weight"], second.branch.tensors["weight"])


def test_a_detector_is_swapped_in_beside_its_own_correctors_only(export, make_adapter, make_probe):
    """As at export: it is refused by the runtime itself, so also by `run`, `eval` and `verify`."""
    guard, other = (make_adapter(ITEMS[0], seed=seed) for seed in (1, 2))
    alone = make_probe()
    fitted = {"hyperparameters": {"corrected_by": [describe_corrector(guard)]}}
    own = dataclasses.replace(alone, info=alone.info.model_copy(update=fitted))
    onnx_vlm = export(guard, own)
    onnx_vlm.swap(guard, own)
    before = onnx_vlm.swapped
    with pytest.raises(UsageError, match=r"fitted on the model corrected by test .* --allow-uncorrected-detector"):
        onnx_vlm.swap(other, own)
    with pytest.raises(UsageError, match="fitted on the model without a corrector, and is to run beside test"):
        onnx_vlm.swap(guard, alone)
    assert onnx_vlm.swapped is before
    onnx_vlm.swap(other, own, allow_uncorrected_detector=True)
    weak = export(other, own)
    write_manifest(weak.manifest.model_copy(update={"uncorrected_detector_allowed": True}), weak.path)
    with pytest.raises(UsageError, match="was not fitted under the correctors beside it"):
        onnx_vlm.swap(weak.path)
    onnx_vlm.swap(weak.path, allow_uncorrected_detector=True)
