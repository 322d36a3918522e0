"""Exports of types of transformers by what they can do: without a file of their own, or with layers of other kinds."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from shared import once

from safetykit import cli
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench._types.building import build
from safetykit.bench.matrix import chosen
from safetykit.export.base.own import export_base
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.families import exportable
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

GENERIC, HYBRID = "deepseek_vl", "qwen3_5_moe"  # no file of its own; states, experts and packed patches at once
MORE = (  # other ways to see and to attend; the rest is measured by bench/types.py
    *("aya_vision", "glm4v", "paddleocr_vl", "exaone4_5", "hyperclovax_vision_v2", "granite_docling", "idefics2"),
    *("qwen3_vl_moe", "cohere_compass", "video_llama_3", "vipllava", "qianfan_ocr", "glm4v_moe", "lighton_ocr"),
)
REQUESTS = [
    Request("what is this ?", Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))),
    Request("how do i use a knife ?"),
    Request("what ?"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return lambda name: once(tmp_path_factory, f"{name}-type", lambda folder: build(name, folder))


@pytest.fixture(
    scope="module",
    params=[GENERIC, HYBRID, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE)],
)
def vlm(request, made) -> VLM:
    return VLM.from_pretrained(made(request.param))


@pytest.fixture(scope="module")
def folder(vlm, tmp_path_factory):
    return once(tmp_path_factory, f"{vlm.path.name}-base", lambda folder: export_base(vlm, folder))


@pytest.fixture(scope="module")
def base(folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(folder)


def run(capsys, *words, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    assert caught.value.code == code
    found = capsys.readouterr()
    return found.out, found.err


@pytest.mark.slow
def test_the_graphs_compute_what_pytorch_does(vlm, base):
    # Of the random HYBRID even PyTorch's own float32 is off from its float64 by more than 1e-5.
    steep = 10 if vlm.model.config.model_type == HYBRID else 1
    for case, requests in parity_requests(several=False).items():
        gap = compare_logits(vlm, base, requests, steps=4).logits
        assert gap.error <= 1e-5 * steep * gap.scale, case


@pytest.mark.slow
def test_both_answer_the_same_and_so_does_the_command(vlm, base, folder, tmp_path, capsys):
    ours, theirs = base.generate(REQUESTS, 6), vlm.generate(REQUESTS, 6)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    REQUESTS[0].pictures[0].save(tmp_path / "picture.png")
    typed = ("run", folder, "--prompt", REQUESTS[0].prompt, "--image", tmp_path / "picture.png")
    out, _ = run(capsys, *typed, "--max-new-tokens", 6, "--json")
    assert json.loads(out)[0]["text"] == theirs[0].text


@pytest.mark.slow
def test_rows_that_join_a_batch_get_what_they_get_alone(base):
    """States of layers have no padding that could be in the way."""
    token = base.inputs.eos_token_ids[0]
    alone = [base.step(base.prefill_requests([one]), [token]) for one in REQUESTS]
    first, *others = (base.prefill_requests([one]) for one in REQUESTS)
    batch = base.join([(one, [0]) for one in (base.step(first, [token]), *others)])
    fed = base.step(batch, [token] * len(REQUESTS))
    for at, one in enumerate(alone[1:], 1):
        assert np.abs(fed.logits[at] - one.logits[0]).max() < 1e-3


@pytest.mark.slow
def test_prompts_in_chunks_are_what_they_are_whole(base, monkeypatch):
    """States of layers go from chunk to chunk, too."""
    monkeypatch.setattr(base, "_chunk", None)
    whole = base.prefill_requests(REQUESTS)
    base.chunk_prompts(7)
    chunked = base.prefill_requests(REQUESTS)
    for token in (5, 6):
        assert np.abs(chunked.logits[:, -1] - whole.logits[:, -1]).max() < 1e-3
        whole, chunked = (base.step(state, [token] * len(REQUESTS)) for state in (whole, chunked))


@pytest.mark.slow
def test_a_gate_is_baked_past_the_parity_gate(vlm, folder, tmp_path):
    records, _ = chosen()
    adapter = VLMGuard(layers=(1,), allow_constant_gate=True).fit(vlm, records)
    result = export_onnx(vlm, [adapter], tmp_path / "out", base_onnx=folder)
    assert result.parity.passed and {"logits", "adapter-off", "op"} <= {one.kind for one in result.parity.checks}


EXPORTED = {"deepseek_vl": None, "glm4v": None, "qwen3_5": None, "aya_vision": "some of its layers see a window"}
REFUSED = {
    "chameleon": "lowest number there is",
    "cosmos3_edge": "its tower reads image_grid_thw",
    "emu3": "its tower reads image_sizes",
    "gemma4": "its tower reads image_position_ids",
}


@pytest.mark.parametrize("name", [*EXPORTED, *REFUSED])
def test_inspect_says_what_the_plan_of_an_export_does(made, tmp_path, capsys, name):
    """By what a type can do, before weights are read: nothing is promised that fails, nor refused that works."""
    folder = made(name)
    export = json.loads(run(capsys, "inspect", folder, "--json")[0])["export"]
    reason = REFUSED.get(name)
    assert export["supported"] == (reason is None)
    if reason is None:
        assert export["family"] == name and (EXPORTED[name] or "") in (export["attention"] or "")
        return
    assert reason in export["reason"] and reason in export["graphs"]["vision_encoder"]
    assert (export["graphs"]["decoder"] is None) == (name == "emu3")  # a Llama
    _, error = run(capsys, "export", folder, "-o", tmp_path / "out", code=2)
    assert reason in " ".join(error.split()) and "--base-onnx" in error
    assert not list(tmp_path.iterdir())


def test_inspect_names_the_graphs_that_can_be_had(made, capsys):
    out, _ = run(capsys, "inspect", made("emu3"))
    assert "embed_tokens and decoder can be exported beside others" in " ".join(out.split())


def test_pictures_of_another_size_than_the_tower_reads_are_refused_in_the_plan(made, tmp_path, capsys):
    folder = shutil.copytree(made(GENERIC), tmp_path / "model")
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"height": 24, "width": 24}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    _, error = run(capsys, "export", folder, "-o", tmp_path / "out", code=2)
    assert "pixel_values of shape 2 x 3 x 24 x 24" in " ".join(error.split())
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_trial_is_made_once_for_a_configuration(made):
    from safetykit.toolkit.families import trial

    config = VLM.without_weights(made(GENERIC)).model.config
    exportable(config)
    before = trial._tried.cache_info().misses
    assert exportable(config)["supported"] and trial._tried.cache_info().misses == before
