"""Types of transformers that no family is written for: inspected, run and fitted as transformers itself runs them."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import UsageError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench._types.building import build
from safetykit.bench._types.measuring import branches, compare_answers, compare_logits, requests
from safetykit.bench.matrix import chosen
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.kinds import require_decoder
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

# Of each kind one: no call for image features of its own; sandwich norms; an image token that only the processor names;
# kinds of tokens asked for; a cache that is not only of keys and values; discrete image tokens.
TYPES = ("deepseek_vl", "glm4v", "aya_vision", "cosmos3_edge", "qwen3_5", "chameleon")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folders = {}

    def get(name: str):
        if name not in folders:
            folders[name] = build(name, tmp_path_factory.mktemp("types") / name)
        return folders[name]

    return get


@pytest.fixture(scope="module", params=TYPES)
def vlm(request, made) -> VLM:
    return VLM.from_pretrained(made(request.param))


def test_padded_batches_have_the_logits_and_answers_of_transformers(vlm):
    found = compare_logits(vlm)
    assert found.get("passed", True), found
    found = compare_answers(vlm)
    assert found.get("passed", True), found


def test_branches_add_up_to_their_blocks(vlm):
    assert branches(vlm) == {"sites": 4}


def test_a_fitted_gate_decides_on_prompts_with_and_without_pictures(vlm):
    records, _ = chosen()
    adapter = VLMGuard(layers=(1,), allow_constant_gate=True).fit(vlm, records)
    with vlm.applied(adapter) as hooks:
        vlm.prefill(requests())
    assert hooks.extras["0.score"].shape == (2,) and hooks.extras["0.score"].isfinite().all()


def test_norms_that_end_the_branches_are_their_sites(made):
    vlm = VLM.from_pretrained(made("glm4v"))
    block = vlm.parts.layers[1]
    assert vlm.parts.tap(Site("attn", 1)).module is block.post_self_attn_layernorm
    assert vlm.parts.tap(Site("mlp", 1)).module is block.post_mlp_layernorm


def test_pictures_are_seen_alone_by_a_model_whose_inner_one_does(made):
    vlm = VLM.from_pretrained(made("deepseek_vl"))
    inputs = vlm.inputs.prepare(requests()[:1])
    assert vlm.see(inputs).pooler_output.shape[:2] == (1, int(inputs.vision_mask.sum()))
    vlm.model.model.__class__ = type("Blind", (torch.nn.Module,), {})
    with pytest.raises(UsageError, match="sees pictures only as it reads a prompt"):
        vlm.see(inputs)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("florence2", "an encoder with a decoder"),
        ("t5gemma2", "an encoder with a decoder"),
        ("pix2struct", "an encoder with a decoder"),
        ("diffusion_gemma", "by diffusion"),
        ("kosmos-2", "reads no prompt without a picture"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(name, reason, tmp_path):
    config = CONFIG_MAPPING[name]()
    with pytest.raises(UsageError, match=reason):
        require_decoder(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=reason):  # before its processor and its weights are looked for
        VLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, reason", [("git", "no image token"), ("blip", "no image token")])
def test_pictures_beside_the_prompt_are_refused(made, name, reason):
    with pytest.raises(UsageError, match=reason):
        InputProcessor.from_pretrained(made(name))


def test_prompts_of_models_with_odd_processors_are_read(made):
    inputs = InputProcessor.from_pretrained(made("deepseek_vl"))
    prepared = inputs.prepare([*requests(), Request("what ?")])
    assert prepared.vision_mask.sum(1).tolist() == [16, 0, 0]


def test_a_block_that_texts_leave_out_is_named(made):
    vlm = VLM.from_pretrained(made("mllama"))
    records, _ = chosen()
    with pytest.raises(UsageError, match=r"leaves out decoder.layers.0 where a prompt has no picture"):
        VLMGuard(layers=(0,), allow_constant_gate=True).fit(vlm, records)
    with pytest.raises(UsageError, match=r"no site decoder.layers.0.mlp: a text alone does not pass"):
        vlm.parts.tap(Site("mlp", 0))
