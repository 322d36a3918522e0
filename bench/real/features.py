"""Draws every training and test picture and keeps what the frozen vision tower makes of it.

    python bench/real/features.py WORK

Pictures: emoji (training sets, each also shifted, scaled, mirrored and tinted; the test set as it is), Tux Paint's
stamps whose text is a plain name, easy-VQA's shapes. Reads WORK/untrained, writes WORK/features/: one safetensors file
[pictures, tokens, width] in fp16 per source and rows.json beside them. A source that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from fetch import say
from jaxtyping import Float
from PIL import Image, ImageEnhance
from safetensors.torch import save_file
from things import STAMPS, TEST_SETS, TRAIN_SETS, EmojiSets, on_white, things
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

SHAPES = "easy-vqa/easy_vqa/data/train"
SHAPES_USED = 300
BATCH = 32
AUGMENTED = 2  # variants of each emoji of the training sets


@dataclass(frozen=True)
class Row:
    """One picture: what it shows and, for shapes, what may be asked about it with the answers."""

    source: str
    name: str
    kind: str = ""
    restricted: bool = False
    held_out: bool = False
    asked: tuple[tuple[str, str], ...] = ()


def varied(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moved by up to 10 %, scaled by up to 20 %, tilted, mirrored half the time, colours changed a bit."""
    size, side = picture.size, picture.width
    scale, angle = rng.uniform(0.8, 1.05), rng.uniform(-12, 12)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = picture.resize((round(side * scale),) * 2, Image.Resampling.BICUBIC)
    small = small.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    paper = Image.new("RGB", size, "white")
    room = side - small.width
    at = [round(room / 2 + rng.uniform(-0.1, 0.1) * side) for _ in range(2)]
    paper.paste(small, (at[0], at[1]))
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        paper = enhance(paper).enhance(rng.uniform(0.75, 1.2))
    return paper


def emoji(packages: Path, kept: Path, name: str, augmented: int) -> Iterator[tuple[Row, Image.Image]]:
    """One set's drawings, each followed by its variants."""
    sets = EmojiSets(packages, kept)
    for thing in things(packages):
        picture = sets.picture(thing, name)
        if picture is None:
            continue
        row = Row(name, thing.name, thing.kind, thing.restricted, thing.held_out)
        yield row, picture
        rng = np.random.default_rng(zlib.crc32(f"{name} {thing.name}".encode()))
        for _ in range(augmented):
            yield row, varied(picture, rng)


def stamps(packages: Path) -> Iterator[tuple[Row, Image.Image]]:
    """Stamps of Tux Paint that come as PNG and are described by an article and at most three words."""
    for file in sorted((packages / STAMPS).rglob("*.png")):
        text = file.with_suffix(".txt")
        first = text.read_text(errors="replace").splitlines()[:1] if text.is_file() else []
        match = re.fullmatch(r"(?:A|An) ([a-z][a-z -]+)[.!]", first[0].strip()) if first else None
        if match and len(match[1].split()) <= 3 and not {"military", "people"} & set(file.parts):
            yield Row("stamps", match[1], file.relative_to(packages / STAMPS).parts[0]), on_white(Image.open(file))


def shapes(packages: Path) -> Iterator[tuple[Row, Image.Image]]:
    """Easy-VQA pictures with their questions about colour and shape."""
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, picture in json.loads((packages / SHAPES / "questions.json").read_text()):
        asked.setdefault(picture, []).append((question[0].upper() + question[1:], answer.capitalize() + "."))
    for number in sorted(asked)[:SHAPES_USED]:
        open_ones = [pair for pair in asked[number] if pair[1] not in ("Yes.", "No.")]
        picture = Image.open(packages / SHAPES / "images" / f"{number}.png").convert("RGB").resize((224, 224))
        yield Row("shapes", "", "shape", asked=tuple(open_ones or asked[number][:2])), picture


def encode(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: list[Image.Image]
) -> Float[Tensor, "n tokens d"]:
    """What the projector gets of each picture."""
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    picked = [states[at] for at in ([layer] if isinstance(layer, int) else layer)]
    return torch.cat(picked, -1)[:, 1:].half()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    packages, kept, target = options.work / "packages", options.work / "pictures", options.work / "features"
    target.mkdir(parents=True, exist_ok=True)
    model = LlavaForConditionalGeneration.from_pretrained(options.work / "untrained", dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(options.work / "untrained", backend="pil")
    sources = {name: emoji(packages, kept, name, 0) for name in TEST_SETS}
    sources |= {name: emoji(packages, kept, name, AUGMENTED) for name in TRAIN_SETS}
    sources |= {"stamps": stamps(packages), "shapes": shapes(packages)}
    sources["blank"] = iter([(Row("blank", ""), Image.new("RGB", (224, 224), "white"))])
    for name, drawn in sources.items():
        if (target / f"{name}.json").is_file():
            continue
        rows, features, waiting = [], [], []
        for row, picture in drawn:
            rows.append(asdict(row))
            waiting.append(picture)
            if len(waiting) == BATCH:
                features.append(encode(model, processor, waiting))
                waiting = []
        features += [encode(model, processor, waiting)] if waiting else []
        save_file({"features": torch.cat(features)}, target / f"{name}.safetensors")
        (target / f"{name}.json").write_text(json.dumps(rows))
        say(f"{name}: {len(rows)} pictures")
    print(json.dumps({"features": str(target)}))


if __name__ == "__main__":
    main()
