"""Writes the records that ship with the model organism: `data/records/{fit,calibration,test}.jsonl`.

    python -m safetykit.toolkit.reference.records

The splits share no restricted thing and no permitted thing, so no thing-phrasing combination can leak. Phrasings
that training never saw, the renderings it never saw, and the whole typographic carrier occur in `test` only.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, field

from .atlas import SEEN_FONTS, SEEN_SETS, UNSEEN_FONTS, UNSEEN_SETS, data_folder, reference, shown
from .language import REFUSALS, RESTRICTED_TOPICS, answer, phrasings, prompt, refer, visual_answer
from .world import Thing, things

LOOKALIKE_TOPICS = ("kind", "colour", "risk", "who", "harm")
SPLITS = ("fit", "calibration", "test")
# Pairs of (harmful, harmless) requests per carrier, and look-alikes (a restricted thing, a permitted request).
PAIRS = {
    "fit": {"text": 200, "image": 160},
    "calibration": {"text": 70, "image": 70, "text+image": 20},
    "test": {"text": 120, "image": 150, "typographic": 75, "text+image": 60},
}
LOOKALIKES = {
    "fit": {"text": 80, "image": 80},
    "calibration": {"text": 30, "image": 30},
    "test": {"text": 50, "image": 70, "typographic": 30, "text+image": 20},
}
# Hardly any word in an unseen font is read at 48 pixels, so there are few of them.
UNSEEN_SHARE = {"image": 0.25, "text+image": 0.25, "typographic": 0.12}
INFORMATION = {"fit": {"text": 40, "image": 40}, "calibration": {"image": 20}, "test": {"text": 25, "image": 40}}


@dataclass
class Row:
    """One line of the JSONL, in the order of its fields."""

    id: str
    prompt: str
    image: str | None
    response: str
    label: str
    category: str
    carrier: str
    split: str
    pair: str | None
    group: str  # the thing that it is about, by its English word
    tags: list[str] = field(default_factory=list)


class Writer:
    """Draws the records of one split from a fixed seed, never the same prompt and picture twice."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rng = random.Random(f"records {split}")
        mine = [t for t in things() if t.split == split]
        self.restricted = [t for t in mine if t.restricted]
        self.permitted = [t for t in mine if not t.restricted]
        self.rows: list[Row] = []
        self.taken: set[tuple[str, str | None]] = set()
        self.numbers: Counter[str] = Counter()

    def atlas(self, carrier: str, things_shown: tuple[Thing, ...]) -> str | None:
        """An atlas for the carrier that shows all the things; in `test`, a share of them are unseen ones."""
        if carrier == "text":
            return None
        seen, unseen = (SEEN_FONTS, UNSEEN_FONTS) if carrier == "typographic" else (SEEN_SETS, UNSEEN_SETS)
        choice = unseen if self.split == "test" and self.rng.random() < UNSEEN_SHARE[carrier] else seen
        fitting = [name for name in choice if all(t.index in shown(name) for t in things_shown)]
        fitting = fitting or [name for name in seen if all(t.index in shown(name) for t in things_shown)]
        return self.rng.choice(fitting)

    def row(
        self, thing: Thing, topic: str, template: str, carrier: str, atlas: str | None, state: object, tags: list[str]
    ) -> Row | None:
        """One record, or None if its prompt and picture were taken already. `state` fixes the random wording."""
        rng = random.Random()
        rng.setstate(state)
        context, ref = refer(thing, carrier, rng)
        text = context + prompt(template, ref, rng)
        image = reference(atlas, thing.index) if atlas else None
        if (text, image) in self.taken:
            return None
        self.taken.add((text, image))
        self.numbers[carrier] += 1
        if atlas:
            tags = [*tags, f"rendering:{atlas}", *(["rendering-unseen"] if atlas in UNSEEN_SETS + UNSEEN_FONTS else [])]
        harmful = thing.restricted and topic in RESTRICTED_TOPICS
        if thing.restricted:
            tags = [*tags, "thing-seen-in-alignment" if thing.aligned else "thing-unseen-in-alignment"]
        row = Row(
            id=f"{self.split}-{carrier.replace('+', '-')}-{self.numbers[carrier]:04d}",
            prompt=text,
            image=image,
            response=visual_answer(thing, topic) if atlas else answer(thing, topic),
            label="harmful" if harmful else "harmless",
            category=thing.category,
            carrier=carrier,
            split=self.split,
            pair=None,
            group=thing.word,
            tags=[f"topic:{topic}", *tags],
        )
        self.rows.append(row)
        return row

    def template(self, topic: str) -> tuple[str, list[str]]:
        """An ask template and its tags; in `test`, half of them are held-out phrasings."""
        held_out = self.split == "test" and self.rng.random() < 0.5
        return self.rng.choice(phrasings(topic, held_out)), ["phrasing-unseen"] if held_out else []

    def pairs(self, carrier: str, count: int) -> None:
        """`count` restricted requests, each with the same request about a permitted thing in the same wording."""
        done = 0
        while done < count:
            bad, good = self.restricted[done % len(self.restricted)], self.rng.choice(self.permitted)
            topic = RESTRICTED_TOPICS[done // len(self.restricted) % 2]
            template, tags = self.template(topic)
            atlas, state = self.atlas(carrier, (bad, good)), self.rng.getstate()
            first = self.row(bad, topic, template, carrier, atlas, state, tags)
            second = self.row(good, topic, template, carrier, atlas, state, tags) if first else None
            self.rng.random()  # moves on, so that the next wording is another
            if first and second:
                first.pair, second.pair = second.id, first.id
                done += 1
            elif first:
                self.rows.pop()
                self.taken.discard((first.prompt, first.image))

    def singles(self, carrier: str, count: int, pool: list[Thing], tags: list[str]) -> None:
        """`count` permitted requests for facts about the things of `pool`."""
        done = 0
        while done < count:
            thing, topic = pool[done % len(pool)], self.rng.choice(LOOKALIKE_TOPICS)
            template, more = self.template(topic)
            atlas, state = self.atlas(carrier, (thing,)), self.rng.getstate()
            done += self.row(thing, topic, template, carrier, atlas, state, [*tags, *more]) is not None
            self.rng.random()


def write(split: str) -> Counter[tuple[str, str]]:
    """Write one split; returns the number of records per carrier and label."""
    writer = Writer(split)
    writer.rng.shuffle(writer.restricted)
    writer.rng.shuffle(writer.permitted)
    for carrier, count in PAIRS[split].items():
        writer.pairs(carrier, count)
    for carrier, count in LOOKALIKES[split].items():
        writer.singles(carrier, count, writer.restricted, ["look-alike"])
    for carrier, count in INFORMATION[split].items():
        writer.singles(carrier, count, writer.permitted, [])
    folder = data_folder() / "records"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in writer.rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Counter((row.carrier, row.label) for row in writer.rows)


if __name__ == "__main__":
    assert all(refusal.startswith("sorry") for refusal in REFUSALS)
    for name in SPLITS:
        print(name, dict(sorted(write(name).items())))
