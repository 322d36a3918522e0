"""Swapping adapters on live sessions: the defaults are the bake, a swap is the other bake, and nothing fails open."""

import dataclasses
import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from safetykit.adapters import get_op
from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.manifest import GraphWeights
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import InvalidArtifact, UsageError, WrongBase
from safetykit.export.commands.evaluation import evaluate_model
from safetykit.export.commands.verification import verify_folder
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.swap_check import check_swap
from safetykit.export.parity.swapped import with_parameters
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.answer import answer
from safetykit.export.runtime.hotswap import read_adapter_file, read_swap
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.export.surgery.adapter_file import write_adapter_file
from safetykit.export.surgery.updates import plan_updates
from safetykit.toolkit.model.requests import Request

MIXED = parity_requests()["4 rows padded, mixed"]
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("TargetSteering", "decoder.layers.1", "last", "prefill"),
    ("SubspaceProjection", "projector", "all", "both"),
)


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    """``export(adapter, ..., mode=)``: an export folder of its own per call, opened."""
    made = []

    def run(*adapters: Adapter, mode: str = "hot-swap", **options) -> OnnxVLM:
        folder = tmp_path / f"export{len(made)}"
        made.append(folder)
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        updates = [update for adapter in adapters for update in adapter.updates]
        manifest = adapt(folder, base, adapters, plan_updates(vlm, updates), mode=mode, **options)
        return OnnxVLM(folder, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def logits(onnx_vlm: OnnxVLM, steps: int = 3) -> list[np.ndarray]:
    """Of a prefill and some steps; the tokens are always the same."""
    state = onnx_vlm.prefill_requests(MIXED)
    found = [state.logits]
    for at in range(steps):
        state = onnx_vlm.step(state, np.full(len(MIXED), 8 + at))
        found.append(state.logits)
    return found


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def gap(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference at the last positions, as a share of the largest logit."""
    return max(float(np.abs(a - b)[:, -1].max() / np.abs(a).max()) for a, b in zip(left, right, strict=True))


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


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def live(export, make_adapter):
    return export(make_adapter(*ITEMS))


DIFFERENT = {
    "the site of intervention 1 is decoder.layers.2": lambda item: dataclasses.replace(item, site=Site.block(2)),
    "the scope of intervention 1 is all": lambda item: dataclasses.replace(item, scope="all"),
    "the phase of intervention 1 is both": lambda item: dataclasses.replace(item, phase="both"),
    "the op of intervention 1 is GatedSteering": lambda item: dataclasses.replace(
        item, op="GatedSteering", tensors={name: value for name, value in item.tensors.items() if name != "target"}
    ),
}


@pytest.mark.parametrize("reason", DIFFERENT)
def test_other_ops_and_sites_are_refused_with_the_reason(live, make_adapter, reason):
    adapter = make_adapter(*ITEMS, seed=3)
    items = list(adapter.interventions)
    items[1] = DIFFERENT[reason](items[1])
    before = logits(live)
    with pytest.raises(UsageError, match=reason):
        live.swap(Adapter(adapter.info, tuple(items)))
    assert same(before, logits(live)), "what was there stays"


def test_an_adapter_of_another_base_is_refused(live, make_adapter, tmp_path):
    adapter = make_adapter(*ITEMS)
    base = adapter.info.base.model_copy(update={"fingerprint": "f" * 64})
    with pytest.raises(WrongBase, match="fitted on model ffffffffffff") as caught:
        live.swap(Adapter(adapter.info.model_copy(update={"base": base}), adapter.interventions))
    assert caught.value.exit_code == 4
    foreign = live.manifest.model_copy(update={"base": base})
    arrays = read_adapter_file(live.path / "decoder.onnx_adapter", live.manifest)
    write_adapter_file(tmp_path / "foreign.onnx_adapter", arrays, foreign)
    with pytest.raises(WrongBase, match="another base model"):
        live.swap(tmp_path / "foreign.onnx_adapter", live.path / "vision_encoder.onnx_adapter")
    copy = shutil.copytree(live.path, tmp_path / "copy")
    write_manifest(foreign, copy)
    with pytest.raises(WrongBase, match="was exported from model ffffffffffff"):
        live.swap(copy)


def test_an_adapter_that_was_fitted_on_other_rounded_weights_is_refused(live, make_adapter):
    adapter = make_adapter(*ITEMS)
    on = GraphWeights(precision="int4", sha256="0" * 64)
    told = adapter.info.model_copy(update={"base": adapter.info.base.model_copy(update={"on": on})})
    with pytest.raises(WrongBase, match="fitted on the int4 weights.*does not hold"):
        live.swap(dataclasses.replace(adapter, info=told))


def test_a_file_for_other_sites_is_refused(live, export, make_adapter):
    other = export(make_adapter(ITEMS[0], ("TargetSteering", "decoder.layers.2", "last", "prefill"), ITEMS[2]))
    with pytest.raises(UsageError, match="for other ops or sites"):
        live.swap(other.path / "decoder.onnx_adapter", other.path / "vision_encoder.onnx_adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("safetykit.0.mean"), "lacks the parameter safetykit.0.mean"),
        (lambda a: a.update({"safetykit.7.mean": a["safetykit.0.mean"]}), "safetykit.7.mean, which is no parameter"),
        (lambda a: a.update({"safetykit.0.mean": np.ones(31, np.float32)}), r"\[31\], not float32 \[32\]"),
        (lambda a: a.update({"safetykit.0.basis": np.ones((32, 0), np.float32)}), r"not float32 \[32, 0_basis_rank\]"),
        (lambda a: a.update({"safetykit.0.basis": np.ones((16, 2), np.float32)}), r"\[16, 2\], not"),
        (lambda a: a.update({"safetykit.0.mean": np.ones(32, np.int64)}), r"int64 \[32\], not float32"),
        (lambda a: a.update({"safetykit.0.mean": np.full(32, np.nan, np.float32)}), "is not finite"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(live, tmp_path, change, message):
    arrays = read_adapter_file(live.path / "decoder.onnx_adapter", live.manifest)
    change(arrays)
    write_adapter_file(tmp_path / "bad.onnx_adapter", arrays, live.manifest)
    before = logits(live)
    with pytest.raises(InvalidArtifact, match=message):
        live.swap(tmp_path / "bad.onnx_adapter", live.path / "vision_encoder.onnx_adapter")
    assert same(before, logits(live))


def test_a_graph_without_its_file_is_refused(live):
    with pytest.raises(InvalidArtifact, match="lacks the parameter safetykit.2.basis"):
        live.swap(live.path / "decoder.onnx_adapter")


def test_damaged_and_missing_sources_are_refused(live, tmp_path):
    (tmp_path / "torn.onnx_adapter").write_bytes((live.path / "decoder.onnx_adapter").read_bytes()[:200])
    (tmp_path / "empty.onnx_adapter").touch()
    for name in ("torn", "empty"):
        with pytest.raises(InvalidArtifact, match="no ONNX Runtime adapter"):
            live.swap(tmp_path / f"{name}.onnx_adapter")
    with pytest.raises(UsageError, match="no adapter file"):
        live.swap(tmp_path / "none.onnx_adapter")
    with pytest.raises(UsageError, match="no adapter to swap in"):
        live.swap()
    copy = shutil.copytree(live.path, tmp_path / "copy")
    data = bytearray((copy / "decoder.onnx_adapter").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "decoder.onnx_adapter").write_bytes(data)
    with pytest.raises(InvalidArtifact, match=r"decoder\.onnx_adapter"):
        live.swap(copy)


def test_a_baked_export_swaps_nothing(export, make_adapter):
    adapter = make_adapter(*ITEMS)
    baked = export(adapter, mode="bake")
    with pytest.raises(UsageError, match="mode is bake: its parameters are fixed"):
        baked.swap(adapter)
    with pytest.raises(UsageError, match="The mode of .* is bake"):
        export(adapter).swap(baked.path)


def test_an_answer_does_not_go_on_with_another_adapter(live, make_adapter, requests):
    state = live.prefill_requests(MIXED)
    live.swap(make_adapter(*ITEMS, seed=4))
    with pytest.raises(UsageError, match="The adapter was swapped since this prompt was read"):
        live.step(state, np.full(4, 9))
    state = live.prefill_requests(MIXED)
    live.step(state, np.full(4, 9))
    live.reset()
    with pytest.raises(UsageError, match="Read the prompt again"):
        live.step(state, np.full(4, 9))


def test_a_swap_while_a_prompt_is_read_is_noticed(live, make_adapter, monkeypatch):
    see = live.see

    def seeing(pictures):
        live.swap(make_adapter(*ITEMS, seed=4))
        return see(pictures)

    monkeypatch.setattr(live, "see", seeing)
    with pytest.raises(UsageError, match="The adapter was swapped"):
        live.generate(MIXED, 2)


# -- ONNX Runtime's own way -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_adapter_file_works_in_onnx_runtime_itself(live, export, make_adapter):
    """`RunOptions.add_active_adapter` on the plain session gives what a swap gives."""
    second = export(make_adapter(*ITEMS, seed=2, rank=5))
    path = live.path / "decoder.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    empty = np.zeros((2, live.manifest.n_kv_heads, 0, live.manifest.head_dim), np.float32)
    feeds = {
        "inputs_embeds": random.standard_normal((2, 5, 32)).astype(np.float32),
        "attention_mask": np.ones((2, 5), np.int64),
        "position_ids": np.tile(np.arange(5), (2, 1)),
        **{value.name: empty for value in session.get_inputs() if value.name.startswith("past_key_values")},
    }
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(second.path / "decoder.onnx_adapter"))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    (default,) = session.run(["logits"], feeds)
    (active,) = session.run(["logits"], feeds, options)
    live.swap(make_adapter(*ITEMS, seed=2, rank=5))
    assert np.array_equal(active, live._decoder.run(["logits"], feeds)[0])
    assert not np.allclose(active, default)


def test_the_retrieval_of_texts_is_not_swappable(export, make_adapter):
    from safetykit.export.surgery.swappable import require_swappable

    class Item:
        op, site = "RetrieveTopK", "projector"

        def make_op(self):
            return get_op("RetrieveTopK")

    class One:
        item = Item()

    with pytest.raises(UsageError, match="the texts of its index would not follow"):
        require_swappable([One()])


def test_reading_a_swap_checks_everything_before_it_says_anything(live):
    swap = read_swap([live.path], live.manifest)
    assert set(swap.arrays) == {one.name for one in live.manifest.parameters}


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
