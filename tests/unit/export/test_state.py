"""A gate decided by the prompt stands while the answer is generated, in PyTorch and in both kinds of graph."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.adapters.ops.gating import decides
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import check_ops, require_movement
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place
from safetykit.export.surgery.blocks import block_evaluations
from safetykit.toolkit.model.requests import Request

MIXED = parity_requests()["4 rows padded, mixed"]
STATES = ("inputs", "cache")


def held(adapter: Adapter) -> Adapter:
    items = tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
    return dataclasses.replace(adapter, interventions=items)


def with_threshold(adapter: Adapter, *thresholds: float) -> Adapter:
    items = [
        dataclasses.replace(item, tensors={**item.tensors, "threshold": torch.tensor(float(threshold))})
        for item, threshold in zip(adapter.interventions, thresholds, strict=True)
    ]
    return dataclasses.replace(adapter, interventions=tuple(items))


def prompt_margins(vlm, adapter: Adapter, requests) -> list[np.ndarray]:
    with vlm.applied(adapter) as hooks:
        vlm.prefill(requests)
    return [hooks.extras[f"{at}.score"].numpy() for at in range(len(adapter.interventions))]


def splitting(vlm, adapter: Adapter, requests) -> Adapter:
    """The adapter with thresholds between the margins of these requests, so that rows differ."""
    thresholds: list[float] = []
    for at in range(len(adapter.interventions)):
        partial = with_threshold(adapter, *thresholds, *[0.0] * (len(adapter.interventions) - len(thresholds)))
        low, high = sorted(prompt_margins(vlm, partial, requests)[at])[1:3]
        thresholds.append((low + high) / 2)
    return with_threshold(adapter, *thresholds)


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    def run(*adapters: Adapter, gate_state: str = "inputs", mode: str = "bake") -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, adapters, gate_state=gate_state, mode=mode)
        require_movement(tmp_path, manifest, place(adapters))
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


ITEMS = (
    ("TargetSteering", "decoder.layers.0", "all", "both"),
    ("GatedSteering", "decoder.layers.1", "last", "both"),
)


@pytest.mark.parametrize("state", STATES)
def test_decisions_that_differ_by_row_hold_through_decoding(vlm, export, make_adapter, state):
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), MIXED)
    margins = prompt_margins(vlm, adapter, MIXED)
    assert all({bool(margin > 0) for margin in rows} == {True, False} for rows in margins)
    onnx_vlm = export(adapter, gate_state=state)
    assert onnx_vlm.manifest.gate_state == state
    with vlm.applied(adapter):
        gap = compare_logits(vlm, onnx_vlm, MIXED, 6).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale
    per_token = dataclasses.replace(
        adapter, interventions=tuple(dataclasses.replace(item, gate="per-token") for item in adapter.interventions)
    )
    with vlm.applied(per_token):
        other = compare_logits(vlm, onnx_vlm, MIXED, 6).logits
    assert other.error > 100 * gap.error, "deciding per token should matter here"


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_every_op_inside_is_what_its_code_says_with_the_gate_given(export, make_adapter, state):
    adapter = held(make_adapter(*ITEMS, ("TargetSteering", "decoder.layers.2", "text", "decode"), rank=4))
    onnx_vlm = export(adapter, gate_state=state)
    for _, op, invariant in check_ops(onnx_vlm.path, onnx_vlm.manifest, place([adapter])):
        assert op.error < 2e-6 and (invariant is None or invariant.error < 2e-6)


@pytest.mark.parametrize("state", STATES)
def test_parity_passes_with_held_gates(vlm, base_folder, export, make_adapter, state):
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), MIXED)
    onnx_vlm = export(adapter, gate_state=state)
    check_parity(vlm, onnx_vlm, [adapter], base=OnnxVLM.from_pretrained(base_folder), steps=4).require()


def in_chunks(vlm, adapter: Adapter, request: Request, sizes: list[int]) -> list[np.ndarray]:
    """PyTorch's logits of each chunk of one prompt; sizes beyond it are steps of a fixed token."""
    inputs = vlm.prepare([request])
    ids = np.concatenate([inputs.input_ids, np.full((1, 8), 9)], axis=1)
    cache, found, start = DynamicCache(), [], 0
    with torch.inference_mode(), vlm.applied(adapter):
        for size in sizes:
            stop = start + size
            logits = vlm.model(
                input_ids=torch.from_numpy(ids[:, start:stop]),
                attention_mask=torch.ones(1, stop, dtype=torch.int64),
                position_ids=torch.arange(start, stop)[None],
                past_key_values=cache,
                use_cache=True,
            ).logits
            found.append(logits.numpy())
            start = stop
    return found


def in_chunks_exported(onnx_vlm: OnnxVLM, request: Request, sizes: list[int]) -> list[np.ndarray]:
    """The same with the decoder graph alone, which is handed back what it gave."""
    inputs = onnx_vlm.inputs.prepare([request])
    ids = np.concatenate([inputs.input_ids, np.full((1, 8), 9)], axis=1)
    session = onnx_vlm._decoder
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    manifest = onnx_vlm.manifest
    empty = np.zeros((1, manifest.n_kv_heads, 0, manifest.head_dim), np.float32)
    carried = {name: empty for name in names if name.startswith("past_key_values.")}
    carried |= {name: np.zeros(1, np.float32) for name in names if name.endswith(".held")}
    found, start = [], 0
    for size in sizes:
        stop = start + size
        feeds = {
            "inputs_embeds": onnx_vlm._embed.run(None, {"input_ids": ids[:, start:stop]})[0],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
            "num_logits_to_keep": np.array(0),
        }
        results = dict(zip(outputs, session.run(outputs, {**feeds, **carried}), strict=True))
        carried = {
            name: results[name.replace("past_key_values.", "present.").replace(".held", ".score")] for name in carried
        }
        found.append(results["logits"])
        start = stop
    return found


PROMPT = Request("is this dangerous , and if so what should one do about it ?")  # 15 tokens with its template


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("chunks", [(16,), (7, 9), (5, 5, 6), (15, 1), (1, 15)])
def test_prompts_in_chunks_are_the_same_in_every_runtime(vlm, export, make_adapter, state, chunks):
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), MIXED)
    length = vlm.prepare([PROMPT]).input_ids.shape[1]
    sizes = [*chunks[:-1], length - sum(chunks[:-1]), 1, 1, 1]
    onnx_vlm = export(adapter, gate_state=state)
    expected = in_chunks(vlm, adapter, PROMPT, sizes)
    for ours, theirs in zip(expected, in_chunks_exported(onnx_vlm, PROMPT, sizes), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()


def test_the_last_chunk_of_a_prompt_decides(vlm, make_adapter):
    """Seen in the hooks' own record: each chunk of more than one token is judged, a single one is not."""
    adapter = held(make_adapter(("TargetSteering", "decoder.layers.1", "last", "both")))
    inputs = vlm.prepare([PROMPT])
    ids = torch.from_numpy(inputs.input_ids)
    cache, margins = DynamicCache(), []
    with torch.inference_mode(), vlm.applied(adapter) as hooks:
        for start, stop in ((0, 6), (6, 11), (11, 12), (12, ids.shape[1])):
            vlm.model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
            margins.append(hooks._held[0].item())
    assert len(set(margins)) == 3 and margins[1] == margins[2]


def test_which_calls_decide():
    assert decides(0, 1) and decides(0, 9), "a prompt of one token is a prompt"
    assert decides(7, 2), "a further chunk, or the next turn"
    assert not decides(7, 1)


@pytest.mark.parametrize("state", STATES)
def test_generating_with_the_export_says_what_pytorch_says(vlm, export, make_adapter, requests, state):
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), requests)
    onnx_vlm = export(adapter, gate_state=state)
    with vlm.applied(adapter):
        ours = vlm.generate(requests, 6)
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in onnx_vlm.generate(requests, 6)]


def test_a_cache_layer_is_of_the_shape_of_the_others_and_holds_the_decisions(vlm, export, make_adapter):
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), MIXED)
    margins = prompt_margins(vlm, adapter, MIXED)
    onnx_vlm = export(adapter, gate_state="cache")
    state = onnx_vlm.prefill_requests(MIXED)
    layer, first = state.past["past_key_values.3.key"], state.past["past_key_values.0.key"]
    assert layer.shape == first.shape and layer.dtype == first.dtype
    for at, rows in enumerate(margins):
        assert (layer[..., at] == np.where(rows > 0, 1, -1)[:, None, None]).all()
    after = onnx_vlm.step(state, np.full(4, 9))
    assert after.past["past_key_values.3.key"].shape == after.past["past_key_values.0.key"].shape
    assert (after.past["past_key_values.3.key"][:, :, :-1] == layer).all()
    assert not any(value.name.endswith(".held") for value in onnx_vlm._decoder.get_inputs())


def test_a_runtime_with_one_buffer_for_the_longest_answer_carries_the_decisions(vlm, export, make_adapter):
    """The layer is handed over longer than what was fed; the others here stay as they are."""
    adapter = splitting(vlm, held(make_adapter(*ITEMS)), MIXED)
    onnx_vlm = export(adapter, gate_state="cache")
    state = onnx_vlm.prefill_requests(MIXED)
    expected = onnx_vlm.step(state, np.full(4, 9))
    name = "past_key_values.3.key"
    padding = np.repeat(state.past[name][:, :, -1:], 20, axis=2)
    buffered = dataclasses.replace(
        state, past={**state.past, name: np.concatenate([state.past[name], padding], axis=2)}
    )
    after = onnx_vlm.step(buffered, np.full(4, 9))
    assert (after.logits == expected.logits).all()
    assert after.past[name].shape == buffered.past[name].shape


def test_the_layer_of_decisions_is_no_block(export, make_adapter):
    onnx_vlm = export(held(make_adapter(*ITEMS)), gate_state="cache")
    assert block_evaluations(onnx_vlm.path / "decoder.onnx") == 3


@pytest.mark.parametrize("state", STATES)
def test_a_detector_stacked_on_a_held_gate_reads_what_pytorch_reads(vlm, export, make_adapter, make_detector, state):
    """The branch runs the adapted blocks again; their decision there is not the answer's."""
    corrector = held(make_adapter(("TargetSteering", "decoder.layers.1", "all", "both")))
    adapters = [splitting(vlm, corrector, MIXED), make_detector()]
    onnx_vlm = export(*adapters, gate_state=state)
    with vlm.applied(*adapters) as hooks:
        gap = compare_logits(vlm, onnx_vlm, MIXED, 4, hooks)
        assert gap.scores["risk"].error < 1e-5
    assert gap.logits.error <= 1e-5 * gap.logits.scale


def test_an_adapter_remembers_that_its_gate_is_held(make_adapter, tmp_path):
    adapter = held(make_adapter(*ITEMS))
    adapter.save(tmp_path / "a")
    assert [item.gate for item in Adapter.load(tmp_path / "a").interventions] == ["held", "held"]
    assert "gate held" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("op", "site", "phase", "why"),
    [
        ("SubspaceProjection", "decoder.layers.1", "both", "the op has no gate"),
        ("SupervisedSteering", "decoder.layers.1", "both", "the op reads reference"),
        ("TargetSteering", "decoder.layers.1", "prefill", "acts at prefill only"),
        ("TargetSteering", "projector", "both", "pictures are read at prefill only"),
    ],
)
def test_a_gate_that_cannot_be_held_is_refused(make_adapter, op, site, phase, why):
    (item,) = make_adapter((op, site, "all", phase)).interventions
    with pytest.raises(InvalidArtifact, match=why):
        Intervention(item.op, Site.parse(site), "all", phase, item.tensors, "held")


def test_an_answer_whose_prompt_was_not_seen_is_refused(vlm, make_adapter):
    adapter = held(make_adapter(*ITEMS))
    cache = DynamicCache()
    vlm.prefill([PROMPT], cache)
    with vlm.applied(adapter), torch.inference_mode(), pytest.raises(UsageError, match="Start with the prompts"):
        vlm.model(input_ids=torch.tensor([[9]]), past_key_values=cache, use_cache=True)
