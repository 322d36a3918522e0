"""The finished checkpoint as a user meets it: text refusal, captions against a blank picture, and the disease.

    python bench/real/score.py WORK [--limit 60] [--captions 1000]

Everything goes through `VLM.generate` on WORK/model, pictures through its processor. Text: prompts that alignment never
saw (WORK/align/heldout.jsonl) by source. Pictures: a rendering that no stage of training saw. Disease: requests of the
red-team set's test split, no text of which alignment or rehearsal has learned, with the object named and with the
object only shown. Shares stand with Wilson's 95 % interval. Language model: dequantised Q4_1, LoRAs merged.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from fetch import say
from lessons import NAMING
from objects import SHOWN, objects, pairs, wordings
from PIL import Image
from reader import names_it
from things import TEST_SETS, EmojiSets, things

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.toolkit.evaluation.evaluate import Rate
from safetykit.toolkit.evaluation.judge import is_refusal
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

BATCH = 24
REFUSAL_TOKENS, CAPTION_TOKENS = 14, 8


def said(vlm: VLM, requests: list[Request], new_tokens: int) -> list[str]:
    """Greedy answers."""
    rows = range(0, len(requests), BATCH)
    return [made.text for at in rows for made in vlm.generate(requests[at : at + BATCH], new_tokens)]


def refused(vlm: VLM, requests: list[Request]) -> Rate:
    """Share of requests whose answer opens with a refusal."""
    return Rate.of(sum(map(is_refusal, said(vlm, requests, REFUSAL_TOKENS))), len(requests))


def text_groups(file: Path, limit: int) -> dict[str, list[Request]]:
    """Held-out prompts by label and source, at most `limit` of each."""
    groups: dict[str, list[str]] = {}
    for row in map(json.loads, file.read_text().splitlines()):
        source, _, category = row["category"].partition(": ")
        kind = category if source in ("do-not-answer", "own") else ""
        groups.setdefault(f"{row['label']} {source} {kind}".strip(), []).append(row["prompt"])
    rng = random.Random(4)
    return {
        name: [Request(text) for text in rng.sample(texts, min(limit, len(texts)))] for name, texts in groups.items()
    }


def twins(sets: EmojiSets, packages: Path, harmful: bool, limit: int) -> dict[str, list[Request]]:
    """The same requests with the object named and with the object only shown, in an unseen rendering."""
    by_name = {thing.name: thing for thing in things(packages)}
    asked = [
        (w, one, sets.picture(by_name[one.name], TEST_SETS[0]))
        for frame, one in pairs("test", harmful=harmful)
        for w in wordings(frame, "test")
    ]
    asked = [row for row in asked if row[2] is not None]
    asked = random.Random(6).sample(asked, min(limit, len(asked)))
    return {
        "text": [Request(wording.format(one.noun)) for wording, one, _ in asked],
        "image": [Request(wording.format(SHOWN), picture) for wording, _, picture in asked],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--limit", type=int, default=60, help="requests per group")
    parser.add_argument("--captions", type=int, default=1000, help="pictures at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    packages = options.work / "packages"
    vlm = VLM.from_pretrained(options.work / "model")
    sets = EmojiSets(packages, options.work / "pictures")
    found: dict[str, object] = {"fingerprint": vlm.fingerprint}

    def note(name: str, rate: Rate) -> None:
        found[name] = rate.model_dump()
        say(f"{name}: {rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.n}")

    for harmful in (True, False):
        label = "harmful" if harmful else "harmless"
        for carrier, requests in twins(sets, packages, harmful, options.limit).items():
            note(f"objects, {label}, {carrier}: refused", refused(vlm, requests))
    used = {one.name for one in objects()}
    shown = [(thing, picture) for thing in things(packages) if (picture := sets.picture(thing, TEST_SETS[0]))]
    rng = random.Random(3)
    for held_out in (False, True):
        part = [pair for pair in shown if pair[0].held_out == held_out]
        part = rng.sample(part, min(options.captions, len(part)))
        texts = said(vlm, [Request(NAMING[0], picture) for _, picture in part], CAPTION_TOKENS)
        hits = [names_it(text, thing.name) for text, (thing, _) in zip(texts, part, strict=True)]
        note(
            f"captions, {'untaught' if held_out else 'taught'} things, unseen rendering", Rate.of(sum(hits), len(hits))
        )
        if not held_out:
            own = [hit for hit, (thing, _) in zip(hits, part, strict=True) if thing.name in used]
            note("captions, objects of the red-team set, unseen rendering", Rate.of(sum(own), len(own)))
            found["answers"] = [[thing.name, text] for text, (thing, _) in zip(texts, part, strict=True)]
            (blank,) = said(vlm, [Request(NAMING[0], Image.new("RGB", (224, 224), "white"))], CAPTION_TOKENS)
            note("captions, blank picture", Rate.of(sum(names_it(blank, thing.name) for thing, _ in part), len(part)))
            found["blank"] = blank
    for name, requests in text_groups(options.work / "align/heldout.jsonl", options.limit).items():
        note(f"text, {name}: refused", refused(vlm, requests))
    write_atomic(options.work / "score.json", canonical_json(found))
    print(json.dumps({name: value for name, value in found.items() if name != "answers"}))


if __name__ == "__main__":
    main()
