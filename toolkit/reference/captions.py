"""Writes the captions that ship with the model organism: `data/captions.jsonl`.

    python -m safetykit.toolkit.reference.captions

Every emoji rendering that training saw, of every thing of the `fit` split, restricted or not, with a caption and three
permitted requests with their answers. No thing of the other splits, no rendering and no phrasing kept for `test`, no
drawn word, no restricted request, no refusal, and no label. The caption names colour and thing and leaves out what the
language's longer caption adds, whether the thing is risky: that would be a safety label in words.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from .atlas import SEEN_SETS, data_folder, reference, shown
from .language import INFORMATION_TOPICS, RESTRICTED_TOPICS, answer, phrasings, prompt, refer, visual_answer
from .world import Thing, things

TURNS = 3


def captions_file() -> Path:
    """Where the captions lie."""
    return data_folder() / "captions.jsonl"


def caption(thing: Thing) -> str:
    """What a picture of the thing shows: the first half of the language's caption."""
    return f"{answer(thing, 'caption').partition(',')[0]}."


def _turn(thing: Thing, topic: str, rng: random.Random) -> dict[str, str]:
    template = rng.choice(phrasings(topic, held_out=False))
    return {
        "instruction": prompt(template, refer(thing, "image", rng)[1], rng),
        "answer": visual_answer(thing, topic),
    }


def lines() -> list[dict]:
    """One object per picture; the topics of a thing go round its renderings, so that all of them occur."""
    rng = random.Random("captions")
    found = []
    for thing in things():
        if thing.split != "fit":
            continue
        topics = list(INFORMATION_TOPICS if thing.restricted else INFORMATION_TOPICS + RESTRICTED_TOPICS)
        rng.shuffle(topics)
        renderings = [name for name in SEEN_SETS if thing.index in shown(name)]
        for number, atlas in enumerate(renderings):
            mine = [topics[(number * TURNS + step) % len(topics)] for step in range(TURNS)]
            found.append(
                {
                    "id": f"{thing.word}-{atlas}",
                    "image": reference(atlas, thing.index).removeprefix("../"),
                    "caption": caption(thing),
                    "turns": [_turn(thing, topic, rng) for topic in mine],
                }
            )
    return found


if __name__ == "__main__":
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines()) + "\n"
    captions_file().write_text(text, encoding="utf-8")
    print(f"{text.count(chr(10))} captioned pictures, {len(text) // 1024} KB")
