"""Decoders of other types inside LLaVA and InternVL: run, fitted and evaluated, and exported with parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench import zoo
from safetykit.bench._types.measuring import branches, compare_answers, compare_logits, evaluated
from safetykit.bench.matrix import chosen
from safetykit.bench.zoo.common import save, text
from safetykit.export.base.own import export_base
from safetykit.export.parity.compare import compare_logits as compare_graphs
from safetykit.export.parity.compare import parity_requests
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.commands.inspect import describe
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.vlm import VLM

EXPERTS = {"num_experts_per_tok": 2}
ROPE = {"rope_theta": 10000.0}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("qwen2", {}),
    "yarn": (
        "qwen2",
        {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "mixtral": ("mixtral", {**EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32},
    ),
    "mistral, sliding": ("mistral", {"sliding_window": 6}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
}
CASES = [
    *(("llava", name) for name in ("tied", "qwen2_moe", "mistral, sliding", "mixtral")),
    *(("internvl", name) for name in ("untied", "yarn", "mixtral", "qwen2, sliding")),
]
EXPORTED = [("internvl", "yarn"), ("llava", "qwen2_moe"), ("llava", "mistral, sliding"), ("internvl", "qwen2, sliding")]


def build(outer: str, backbone: str, folder: Path) -> Path:
    """A tiny checkpoint of the outer type with another decoder, and random weights."""
    plain = zoo.build(outer, folder / "plain")
    processor, config = InputProcessor.from_pretrained(plain).processor, AutoConfig.from_pretrained(plain)
    kind, options = BACKBONES[backbone]
    config.text_config = CONFIG_MAPPING[kind](**{**text(processor.tokenizer), **options})
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    save(folder / "made", lambda: AutoModelForImageTextToText.from_config(config), processor)
    return folder / "made"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folders = {}

    def get(case) -> Path:
        if case not in folders:
            folders[case] = build(*case, tmp_path_factory.mktemp("backbones"))
        return folders[case]

    return get


@pytest.mark.parametrize("case", CASES, ids=": ".join)
def test_a_backbone_runs_as_transformers_runs_it_and_is_fitted(made, case):
    """Logits and answers of padded batches; branches; a gate on both kinds of prompts; an evaluation."""
    found = describe(str(made(case)))["export"]
    assert found["supported"], found["reason"]
    vlm = VLM.from_pretrained(made(case))
    for one in (compare_logits(vlm), compare_answers(vlm)):
        assert one.get("passed", True), one
    assert branches(vlm) == {"sites": 4}
    records, test = chosen()
    adapter = VLMGuard(layers=(1,), allow_constant_gate=True).fit(vlm, records)
    assert evaluated(vlm, [adapter], test) == {"records": len(test)}


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=": ".join)
def test_a_backbone_s_graphs_compute_what_pytorch_computes(made, case, tmp_path):
    """Longer than its windows, in padded batches with pictures and at cached steps."""
    vlm = VLM.from_pretrained(made(case))
    export_base(vlm, tmp_path / "base")
    asked = parity_requests(several=True)["4 rows padded, mixed"]
    gap = compare_graphs(vlm, OnnxVLM.from_pretrained(tmp_path / "base"), asked, steps=6).logits
    assert gap.error <= 1e-5 * gap.scale
