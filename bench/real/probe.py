"""How much of a picture survives: naming emoji of an unseen rendering from the vision backbone's features.

    python bench/real/probe.py WORK [--things 200]

LLaVA has one image token per patch, so 224 px would mean 256 tokens. For each picture size and each block of the
backbone a linear probe (ridge regression on one-hot names) of the mean patch token is trained on some emoji sets
and names the things of a set it never saw. Writes WORK/probe.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from assemble import _VISION, MEAN, STD
from fetch import say
from jaxtyping import Float
from PIL import Image
from things import TEST_SETS, EmojiSets, Thing, things
from vision_weights import PATCH, load_tower

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.toolkit.evaluation.evaluate import Rate

SETS = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "noto-v1")
SIZES = (84, 112, 224)  # pixels
BLOCKS = (6, 8, 9, 10, 11, 12)  # hidden_states index: after this many blocks
RIDGES = (1.0, 10.0, 100.0, 1000.0)


def pixels(pictures: list[Image.Image], size: int) -> Float[np.ndarray, "n 3 size size"]:
    """Resized and normalised as the checkpoint's processor does it."""
    resized = [np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]
    scaled = (np.stack(resized).astype(np.float32) / 255 - MEAN) / STD
    return scaled.transpose(0, 3, 1, 2).astype(np.float32)


def pooled(pictures: list[Image.Image], tower: torch.nn.Module, size: int) -> Float[np.ndarray, "blocks n d"]:
    """Mean patch token after each of `BLOCKS`."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 32):
            states = tower(torch.from_numpy(pixels(pictures[start : start + 32], size)), output_hidden_states=True)
            rows.append(torch.stack([states.hidden_states[block][:, 1:].mean(1) for block in BLOCKS]))
    return torch.cat(rows, 1).numpy()


def named(train: np.ndarray, names: np.ndarray, test: np.ndarray, truth: np.ndarray, ridge: float) -> np.ndarray:
    """Whether the ridge classifier names each test row rightly."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    onehot = np.eye(names.max() + 1)[names]
    weights = np.linalg.solve(train.T @ train + ridge * np.eye(train.shape[1]), train.T @ (onehot - onehot.mean(0)))
    return (test @ weights).argmax(1) == truth


def shown(sets: EmojiSets, chosen: list[Thing], names: tuple[str, ...]) -> tuple[list[Image.Image], np.ndarray]:
    """Every drawing of the chosen things in these sets, and which thing it shows."""
    found = [(at, sets.picture(thing, name)) for name in names for at, thing in enumerate(chosen)]
    found = [(at, picture) for at, picture in found if picture is not None]
    return [picture for _, picture in found], np.array([at for at, _ in found])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--things", type=int, default=200, help="how many things")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    packages = options.work / "packages"
    sets = EmojiSets(packages, options.work / "pictures")
    everywhere = [t for t in things(packages) if all(sets.svg(t, name) for name in (*SETS, *TEST_SETS))]
    chosen = [everywhere[at] for at in np.random.default_rng(0).permutation(len(everywhere))[: options.things]]
    train, names = shown(sets, chosen, SETS)
    test, truth = shown(sets, chosen, TEST_SETS)
    file = options.work / "probe.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for size in SIZES:
        tower = load_tower(packages / _VISION, size)
        seen, unseen = pooled(train, tower, size), pooled(test, tower, size)
        for at, block in enumerate(BLOCKS):
            hits = max((named(seen[at], names, unseen[at], truth, ridge) for ridge in RIDGES), key=np.sum)
            rate = Rate.of(int(hits.sum()), len(hits))
            found[f"{size} px block {block}"] = {**rate.model_dump(), "tokens": (size // PATCH) ** 2}
            say(
                f"{size} px, after block {block}: {rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}] "
                f"of {len(chosen)} things"
            )
        write_atomic(file, canonical_json(found))
    print(json.dumps({"probe": str(file)}))


if __name__ == "__main__":
    main()
