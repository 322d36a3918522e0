"""A tiny LLaVA with random weights, saved as a checkpoint, and its base export: once per session."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import once
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from safetykit import export_onnx
from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo, DetectorInfo
from safetykit.adapters.ops.branch import Branch
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.own import export_base, quantise_decoder
from safetykit.export.manifest import read_manifest
from safetykit.export.surgery.adapt import copy_base
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

WORDS = [
    "what",
    "is",
    "in",
    "the",
    "picture",
    "?",
    "describe",
    "it",
    ".",
    "this",
    "dangerous",
    ",",
    "and",
    "if",
    "so",
    "should",
    "one",
    "do",
    "about",
    "use",
    "thing",
    "how",
    "to",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:"]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
WIDTH, LAYERS = 32, 3

torch.set_num_threads(1)  # models this small only lose by threads


def save_checkpoint(folder: Path, **options: object) -> Path:
    """A checkpoint with random weights of realistic size: activations and logits of a few units."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy=options.get("vision_feature_select_strategy", "default"),
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=3,
        pad_token_id=0,
        initializer_range=0.15,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        image_seq_length=4,
        **{"vision_feature_layer": -2, **options},
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.multi_modal_projector.apply(_enlarge)
    model.lm_head.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _enlarge(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.data.normal_(std=0.5)


@pytest.fixture(scope="session")
def make_checkpoint():
    """``make_checkpoint(folder, **config)``: a checkpoint with other options."""
    return save_checkpoint


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return VLM.from_pretrained(once(tmp_path_factory, "tiny-llava", save_checkpoint))


@pytest.fixture(scope="session")
def base_folder(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "tiny-llava-base", lambda folder: export_base(vlm, folder))


@pytest.fixture(scope="session")
def int4_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base export with a quantised decoder."""

    def make(folder: Path) -> None:
        folder.mkdir()
        manifest = read_manifest(base_folder)
        copy_base(base_folder, folder, manifest)
        quantise_decoder(folder, manifest, Int4Options(block_size=16))

    return once(tmp_path_factory, "tiny-llava-int4", make)


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    return [
        Request("what is in the picture ?", picture(0)),
        Request("is this dangerous , and if so what should one do about it ?"),
        Request("describe it .", picture(1)),
        Request("how to use this thing ?"),
    ]


@pytest.fixture(scope="session")
def make_adapter(vlm: VLM):
    """A factory: ``make_adapter((op, site, scope, phase), ...)`` with parameters that move hidden states a lot."""

    def make(*items: tuple[str, str, str, str], seed: int = 0, rank: int = 2) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        interventions = tuple(_intervention(vlm, generator, rank, *item) for item in items)
        info = AdapterInfo(
            method="test",
            variant="test",
            sign_convention="none",
            hyperparameters={},
            seed=seed,
            base=vlm.base,
            data=DataInfo(sha256="0" * 64, counts={}),
            versions={},
        )
        return Adapter(info, interventions)

    return make


def _intervention(
    vlm: VLM, generator: torch.Generator, rank: int, op: str, site: str, scope: str, phase: str
) -> Intervention:
    parsed = Site.parse(site)
    width = WIDTH
    with contextlib.suppress(KeyError):
        width = {"vision": 16, "logits": vlm.parts.head.weight.shape[0]}[parsed.kind]
    basis, _ = torch.linalg.qr(torch.randn(width, rank, generator=generator))
    everything = {
        "basis": basis.contiguous(),
        "mean": torch.randn(width, generator=generator) * 0.3,
        "beta": torch.tensor(1.0),
        "gate": basis[:, 0].contiguous(),
        "threshold": torch.tensor(-0.5),
        "alpha": torch.tensor(1.5),
        "target": torch.randn(width, generator=generator) * 2,
    }
    from safetykit.adapters import get_op

    return Intervention(op, parsed, scope, phase, {name: everything[name] for name in get_op(op).params})


@pytest.fixture(scope="session")
def make_detector(make_adapter):
    """A factory: a SASA adapter with random probe weights that refuses above ``threshold``."""

    def make(safety: int = 0, fused: int = 1, *, threshold: float = 0.0, seed: int = 0) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        tensors = {"weight": torch.randn(WIDTH, generator=generator) * 0.5, "bias": torch.tensor(0.3)}
        branch = Branch("FusedProjection", Site.block(safety), Site.block(fused), tensors)
        info = DetectorInfo(threshold=threshold, refusal="do not use this thing", refusal_token=24)
        return Adapter(make_adapter().info, branch=branch, detector=info)

    return make


@pytest.fixture(scope="session")
def make_probe(make_adapter):
    """A factory: an adapter that reads its risk off one site."""

    def make(site: str = "decoder.layers.1", *, threshold: float = 0.0) -> Adapter:
        generator = torch.Generator().manual_seed(3)
        tensors = {"weight": torch.randn(WIDTH, generator=generator) * 0.5, "bias": torch.tensor(-0.2)}
        item = Intervention("LinearProbe", Site.parse(site), "last", "prefill", tensors)
        info = DetectorInfo(threshold=threshold, refusal="do not use this thing", refusal_token=24)
        return Adapter(make_adapter().info, (item,), detector=info)

    return make


@pytest.fixture(scope="session")
def split_risks(vlm: VLM):
    """The same detector with a threshold between the risks of these requests, and which of them it refuses."""

    def split(adapter: Adapter, requests: list[Request]) -> tuple[Adapter, list[bool]]:
        with vlm.applied(adapter) as hooks:
            vlm.prefill(requests)
        risks = hooks.extras["risk"].tolist()
        low, high = sorted(risks)[len(risks) // 2 - 1 :][:2]
        threshold = (low + high) / 2
        changed = adapter.detector.model_copy(update={"threshold": threshold})
        return dataclasses.replace(adapter, detector=changed), [risk > threshold for risk in risks]

    return split


@pytest.fixture(scope="session")
def canary_export(vlm, base_folder, make_adapter, make_probe, tmp_path_factory):
    """A corrector and a detector, and the bare graphs beside them."""

    def make(folder):
        adapters = [make_adapter(("SupervisedSteering", "decoder.layers.0", "all", "both")), make_probe(threshold=0.3)]
        options = {"base_onnx": base_folder, "allow_uncorrected_detector": True, "parity_rows": 1}
        export_onnx(vlm, adapters, folder, **options)

    return once(tmp_path_factory, "canary-export", make)
