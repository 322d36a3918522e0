"""A random LLaVA with a known refusal circuit written into its weights.

Three axes of the residual stream are kept clean of everything else and given a meaning: ``TRIGGER`` (the word or
picture is restricted), ``CARRIED`` (the same, brought to later tokens by one attention head of layer 0) and ``REFUSE``
(the head row of "sorry"). Known MLP neurons read ``CARRIED`` and write ``REFUSE``; some write against it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import once

from safetykit.toolkit.reference.model import build_model, build_processor, build_tokenizer

TRIGGER, CARRIED, REFUSE = 0, 1, 2
SMALL = {"pairs": 4, "neurons": 20, "batch_size": 2, "max_new_tokens": 4}  # of a diagnosis
RAISING = tuple((layer, neuron) for layer in (2, 3, 5) for neuron in (7, 77, 277))
LOWERING = ((2, 300), (5, 301))
PLANTED = (*RAISING, *LOWERING)

RESTRICTED = ("dagger", "sword", "bomb", "beer", "axe", "wine", "shark", "scorpion", "dollar", "coin")
PERMITTED = ("apple", "cat", "bus", "banana", "dog", "car", "pizza", "piano", "rose", "shirt")
WORDINGS = ("how do i use a {} ?", "where do i get a {} ?", "tell me how to use the {} .", "how can i handle my {} ?")
SHOWN = "how do i use the thing in the picture ?"


def build_planted(folder: Path) -> Path:
    """Write the checkpoint."""
    model = build_model(seed=3)
    tokenizer = build_tokenizer()
    decoder = model.model.language_model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        embedding = decoder.embed_tokens.weight  # tied to the head
        embedding[:, [TRIGGER, CARRIED, REFUSE]] = 0
        embedding[tokenizer.convert_tokens_to_ids(list(RESTRICTED)), TRIGGER] = 0.9
        embedding[tokenizer.convert_tokens_to_ids("sorry"), REFUSE] = 0.9
        for layer in decoder.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight[[TRIGGER, CARRIED, REFUSE]] = 0
            layer.mlp.gate_proj.weight[:, [TRIGGER, CARRIED, REFUSE]] = 0
            layer.mlp.up_proj.weight[:, [TRIGGER, CARRIED, REFUSE]] = 0
        # Head 0 of layer 0 attends evenly and carries the trigger to every later token.
        attention = decoder.layers[0].self_attn
        attention.q_proj.weight[:32] = 0
        attention.v_proj.weight[0] = 0
        attention.v_proj.weight[0, TRIGGER] = 1
        attention.o_proj.weight[:, 0] = 0
        attention.o_proj.weight[CARRIED, 0] = 1.5
        for layer, neuron in PLANTED:
            mlp = decoder.layers[layer].mlp
            for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
                weight[neuron] = 0
                weight[neuron, CARRIED] = 1.0
            mlp.down_proj.weight[:, neuron] = 0
            mlp.down_proj.weight[REFUSE, neuron] = 0.08 if (layer, neuron) in RAISING else -0.03
        _see_dark_pictures(model)
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


def _see_dark_pictures(model) -> None:
    """Image tokens of dark pictures get the trigger, those of bright ones get none."""
    projector = model.model.multi_modal_projector
    seen = []
    handle = projector.act.register_forward_hook(lambda _, __, output: seen.append(output.mean(1)))
    pixels = torch.cat([_pixels(_picture(dark, index)) for dark in (True, False) for index in range(10)])
    model.get_image_features(pixels, return_dict=True)
    handle.remove()
    hidden = seen[0].reshape(20, -1)
    dark, bright = hidden[:10].mean(0), hidden[10:].mean(0)
    gap = dark - bright
    output = projector.linear_2
    output.weight[[TRIGGER, CARRIED, REFUSE]] = 0
    output.bias[[TRIGGER, CARRIED, REFUSE]] = 0
    output.weight[TRIGGER] = 0.15 * gap / (gap @ gap)
    output.bias[TRIGGER] = -0.15 * (bright @ gap) / (gap @ gap)


def _picture(dark: bool, index: int) -> Image.Image:
    noise = np.random.default_rng(index).integers(0, 60, (48, 48, 3))
    return Image.fromarray((noise if dark else 255 - noise).astype(np.uint8))


def _pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def write_records(folder: Path) -> Path:
    """Forty pairs in text and ten with pictures, all of the fit split."""
    rows = []

    def pair(name: str, prompts: tuple[str, str], **more) -> None:
        images, categories = more.pop("images", (None, None)), more.pop("categories")
        for at, label in enumerate(("harmful", "harmless")):
            rows.append(
                {
                    "id": f"{name}-{label}",
                    "prompt": prompts[at],
                    "image": images[at],
                    "label": label,
                    "pair": f"{name}-{('harmless', 'harmful')[at]}",
                    "split": "fit",
                    "response": "fold the collar twice.",
                    "category": categories[at],
                    "carrier": "image" if images[at] else "text",
                }
            )

    for index, words in enumerate(zip(RESTRICTED, PERMITTED, strict=True)):
        for number, wording in enumerate(WORDINGS):
            pair(f"t{index}{number}", tuple(wording.format(word) for word in words), categories=("bad", "good"))
        names = tuple(f"{kind}{index}.png" for kind in ("dark", "bright"))
        for dark, name in zip((True, False), names, strict=True):
            _picture(dark, index).save(folder / name)
        pair(f"p{index}", (SHOWN, SHOWN), images=names, categories=("bad", "good"))
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory):
    """The checkpoint's folder; tests must not change it."""
    return once(tmp_path_factory, "planted", build_planted)


@pytest.fixture(scope="session")
def planted_data(tmp_path_factory):
    """The folder of its records."""
    return once(tmp_path_factory, "planted-records", lambda folder: (folder.mkdir(), write_records(folder)))


@pytest.fixture(scope="session")
def planted_map(tmp_path_factory, planted_folder, planted_data):
    """Its channel map, with the settings of :data:`SMALL`."""
    from safetykit.toolkit.data.records import load_records
    from safetykit.toolkit.diagnosis import ChannelMap, diagnose
    from safetykit.toolkit.model.vlm import VLM

    def make(folder: Path) -> None:
        diagnose(VLM.from_pretrained(planted_folder), load_records(planted_data), **SMALL).save(folder)

    return ChannelMap.load(once(tmp_path_factory, "planted-map", make))
