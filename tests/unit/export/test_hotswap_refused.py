"""Swaps that are refused: another adapter, another base, damaged sources; and what a swap must not disturb."""

import dataclasses
import shutil

import numpy as np
import onnxruntime
import pytest
from swapping import ITEMS, MIXED, logits, same, swappable_exports

from safetykit.adapters import get_op
from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.manifest import GraphWeights
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact, UsageError, WrongBase
from safetykit.export.manifest import write_manifest
from safetykit.export.runtime.hotswap import read_adapter_file, read_swap
from safetykit.export.surgery.adapter_file import write_adapter_file


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return swappable_exports(vlm, base_folder, tmp_path)


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
