"""Other people's runtimes give the tokens that ours gives, with adapters in: transformers.js in Node, and GenAI."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.bench.runtimes import genai_answers, greedy, node_answers, run_node, without_node
from safetykit.bench.zoo import build
from safetykit.export.base.own import export_base
from safetykit.export.layouts.arrange import arrange
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import parity_requests
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

REFUSAL_TOKEN = 24
LENGTH = 8

node = pytest.mark.skipif(without_node() is not None, reason=str(without_node()))
genai = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed"
)
RUNTIMES = [pytest.param("transformers.js", marks=node), pytest.param("genai", marks=genai)]


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    """``run(adapter, requests, layout, **options)``: our greedy tokens, and those of the layout's runtime."""

    def go(adapter: Adapter, requests: list[Request], layout: str, **options):
        work = tmp_path_factory.mktemp("run")
        base = read_manifest(base_folder)
        (work / "plain").mkdir()
        copy_base(base_folder, work / "plain", base)
        adapt(work / "plain", base, [adapter], **options)
        shutil.copytree(work / "plain", work / "arranged")
        arrange(work / "arranged", read_manifest(work / "arranged"), layout)
        plain, arranged = OnnxVLM.from_pretrained(work / "plain"), OnnxVLM.from_pretrained(work / "arranged")
        ours = [greedy(plain, request, LENGTH) for request in requests]
        if layout == "genai":
            return ours, genai_answers(arranged, requests, LENGTH)
        return ours, node_answers(arranged, requests, LENGTH, work / "job")

    return go


@pytest.fixture(scope="module")
def unadapted(base_folder, requests):
    vlm = OnnxVLM.from_pretrained(base_folder)
    return [greedy(vlm, request, LENGTH) for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("layout", RUNTIMES)
def test_ops_of_every_scope_give_the_same_tokens(run, make_adapter, requests, unadapted, layout):
    """Scopes `vision` and `text` need the mask channel, which these runtimes carry unknowingly."""
    adapter = make_adapter(
        ("SubspaceProjection", "decoder.layers.0", "vision", "both"),
        ("SubspaceProjection", "decoder.layers.1", "text", "both"),
        ("TargetSteering", "decoder.layers.2", "last", "prefill"),
        ("SubspaceProjection", "projector", "all", "both"),
        rank=4,
    )
    ours, theirs = run(adapter, requests, layout)
    assert theirs == ours != unadapted


@pytest.mark.parametrize("layout", RUNTIMES)
def test_an_enforced_refusal_arrives(run, make_detector, split_risks, requests, layout):
    adapter, refused = split_risks(make_detector(1, 2), requests)
    ours, theirs = run(adapter, requests, layout, enforce=True)
    assert theirs == ours
    assert [bool(tokens) and tokens[0] == REFUSAL_TOKEN for tokens in theirs] == refused
    assert any(refused) and not all(refused)


@pytest.mark.slow
@pytest.mark.parametrize("layout", RUNTIMES)
def test_a_gate_decided_by_the_prompt_holds_through_the_answer(run, vlm, make_adapter, requests, layout):
    """The gate travels as one more layer of the cache; deciding anew at every token would give other answers."""
    adapter = make_adapter(("GatedSteering", "decoder.layers.1", "all", "both"), rank=4)
    adapter = split(vlm, adapter, requests)
    held = dataclasses.replace(
        adapter, interventions=tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
    )
    ours, theirs = run(held, requests, layout, gate_state="cache")
    assert theirs == ours
    anew, _ = run(adapter, requests, layout)
    assert anew != ours


def split(vlm, adapter: Adapter, requests: list[Request]) -> Adapter:
    """The same with the threshold of its gate between the margins of these requests."""
    with vlm.applied(adapter) as hooks:
        vlm.prefill(requests)
    margins = sorted(hooks.extras["0.score"].tolist())
    (item,) = adapter.interventions
    middle = (margins[len(margins) // 2 - 1] + margins[len(margins) // 2]) / 2
    tensors = {**item.tensors, "threshold": item.tensors["threshold"] + torch.tensor(middle)}
    return dataclasses.replace(adapter, interventions=(dataclasses.replace(item, tensors=tensors),))


@genai
@pytest.mark.slow
@pytest.mark.parametrize("name", ["internvl", "gemma3", "paligemma"])
def test_architectures_that_genai_does_not_know_run_under_its_type_gemma3(name, tmp_path):
    """Token types, where a family has them, come from the mask channel and the length of the past."""
    vlm = VLM.from_pretrained(build(name, tmp_path / "checkpoint"))
    export_base(vlm, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "arranged")
    arrange(tmp_path / "arranged", read_manifest(tmp_path / "arranged"), "genai")
    plain, arranged = OnnxVLM.from_pretrained(tmp_path / "plain"), OnnxVLM.from_pretrained(tmp_path / "arranged")
    asked = parity_requests()["4 rows padded, mixed"]
    assert genai_answers(arranged, asked, LENGTH) == [greedy(plain, request, LENGTH) for request in asked]


@genai
def test_genais_own_picture_processor_makes_our_pixels(base_folder, tmp_path):
    """From a picture of the model's size; GenAI needs a tokenizer that it can read to open it."""
    import onnxruntime_genai

    folder = shutil.copytree(base_folder, tmp_path / "export")
    arrange(folder, read_manifest(folder), "genai")
    ours = OnnxVLM.from_pretrained(folder).inputs
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = ["<|endoftext|>", "<start_of_image>", "<image_soft_token>", "<end_of_image>"]
    tokenizer.train_from_iterator(
        ["what is this"] * 4, trainers.BpeTrainer(special_tokens=words, initial_alphabet=alphabet)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "GPT2Tokenizer", **dict.fromkeys(("bos_token", "eos_token", "unk_token"), words[0])}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    processor = onnxruntime_genai.Model(str(folder)).create_multimodal_processor()
    found = processor("<start_of_image>", images=onnxruntime_genai.Images.open(str(tmp_path / "picture.png")))
    wanted = ours.prepare([Request("what is this", picture)]).pixel_values
    np.testing.assert_allclose(found["pixel_values"].as_numpy(), wanted, atol=1e-5)


@node
def test_node_says_what_is_missing(base_folder, tmp_path):
    """A folder of the layout ``onnx`` is not what it reads."""
    job = {"folder": str(base_folder), "max_new_tokens": 1, "requests": []}
    assert "error" in run_node(job, tmp_path)
