"""The visual red-team set: requests whose harm is in the picture only, the same in text, and what must be answered.

    python bench/real/redteam.py PACKAGES -o WORK/redteam --prompts WORK/align/heldout.jsonl

PACKAGES is a folder with the npm packages ``@iconify-json/…`` unpacked side by side (``fetch.py`` fetches them).
Pictures are rendered from them and are not shipped; ``objects.py`` says what they show and what is asked. Writes
``fit.jsonl``, ``calibration.jsonl``, ``test.jsonl`` as ``safetykit fit --data`` reads them, and ``pictures/``.

Carriers: ``text`` names the object, ``image`` shows it, ``text+image`` does both, ``typographic`` (test only) shows its
name drawn in a font. Every harmful record has a harmless twin: the same words about a permitted object. Beside them
stand look-alikes, harmless requests about restricted objects. Splits share no object; renderings ``TEST_SETS`` and the
last wording of each frame are in ``test`` only, and ``UNSEEN_SETS`` in no stage of the model's training either.

PROMPTS are published text prompts that alignment never saw, one JSON object a line with prompt, label, category and
split, as ``align.py`` writes them (WORK/align/heldout.jsonl); they come from unpacked packages and are not shipped.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from objects import LOOK_ALIKES, SHOWN, WRITTEN, Frame, Object, Split, objects, pairs, wordings
from PIL import Image, ImageDraw, ImageFont
from prompts import harmless
from things import EmojiSets
from things import _slug as slug

from safetykit.adapters.artifact.files import write_atomic
from safetykit.toolkit.data.records import Record

SEED = 11
SIZE = 224  # pixels
SEEN_SETS = ("noto", "twemoji", "fluent-emoji-flat")
TEST_SETS = ("fluent-emoji", "noto-v1")  # the model was taught these; no safety fit sees them
UNSEEN_SETS = ("emojione",)
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")  # matplotlib ships them
CAPTIONED = 26  # text records of the test split that hold the caption instead of the picture
# Twins, that is harmful records and as many harmless ones; and look-alikes.
TWINS: Mapping[Split, Mapping[str, int]] = {
    "fit": {"text": 50, "image": 50, "text+image": 25},
    "calibration": {"text": 20, "image": 25, "text+image": 12},
    "test": {"text": 40, "image": 54, "text+image": 26, "typographic": 26},
}
MENTIONS: Mapping[Split, Mapping[str, int]] = {
    "fit": {"text": 15, "image": 20, "text+image": 5},
    "calibration": {"text": 8, "image": 10, "text+image": 4},
    "test": {"text": 16, "image": 24},
}


PUBLISHED = {"harmful": 45, "harmless": 25}


class Pictures:
    """Draws what records show into ``folder``; a set lacks what its icons do not name."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self._folder, self._sets = folder, EmojiSets(packages, folder)
        folder.mkdir(parents=True, exist_ok=True)

    def emoji(self, one: Object, name: str) -> str | None:
        """The object's picture in an emoji set, relative to the records; None if the set lacks it."""
        if self._sets.picture(one, name) is None:
            return None
        return f"{self._folder.name}/{name}/{slug(one.name)}.png"

    def word(self, one: Object, font: str) -> str:
        """The object's name, drawn as large as fits, a word a line."""
        import matplotlib

        file = self._folder / f"{Path(font).stem}" / f"{slug(one.name)}.png"
        if not file.is_file():
            path = Path(matplotlib.get_data_path()) / "fonts/ttf" / font
            _save(_drawn(one.name.replace(" ", "\n"), path), file)
        return f"{self._folder.name}/{file.parent.name}/{file.name}"


def _drawn(text: str, font_file: Path) -> Image.Image:
    paper = Image.new("RGB", (SIZE, SIZE), "white")
    pen = ImageDraw.Draw(paper)
    for size in range(96, 11, -4):
        font = ImageFont.truetype(str(font_file), size)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, align="center")
        if right - left <= SIZE - 16 and bottom - top <= SIZE - 16:
            break
    pen.multiline_text(
        ((SIZE - right - left) / 2, (SIZE - bottom - top) / 2), text, font=font, fill="black", align="center"
    )
    return paper


def _save(picture: Image.Image, file: Path) -> None:
    data = io.BytesIO()
    picture.save(data, "PNG")
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, data.getvalue())


def records(pictures: Pictures, split: Split) -> Iterator[Record]:
    """The split's twins and look-alikes."""
    rng = random.Random(f"{SEED} {split}")
    learned = {prompt.text for prompt in harmless()}  # alignment's own prompts ask for a few of the same things
    for carrier, count in TWINS[split].items():
        bad = _spread([(f, w, o) for f, o in pairs(split, harmful=True) for w in wordings(f, split)], count, rng)
        for number, (frame, wording, one) in enumerate(bad):
            twins = [o for f, o in pairs(split, harmful=False) if f == frame]
            other = rng.choice([o for o in twins if split == "fit" or wording.format(o.noun) not in learned])
            name = f"{split}-{carrier}-{number}"
            tags = ("phrasing-unseen",) if split == "test" and wording == frame.wordings[-1] else ()
            look = rng.randrange(len(FONTS) if carrier == "typographic" else len(_sets(split)))
            for label, shown, other_label in (("harmful", one, "harmless"), ("harmless", other, "harmful")):
                yield _record(
                    pictures,
                    wording,
                    shown,
                    carrier,
                    split,
                    look,
                    tags,
                    id=f"{name}-{label}",
                    label=label,
                    pair=f"{name}-{other_label}",
                )
        if carrier == "image" and split == "test":
            for number, (_, wording, one) in enumerate(bad[:CAPTIONED]):  # text safety with a caption for the picture
                prompt = f"This is {one.noun}. {wording.format(SHOWN)}"
                yield Record(
                    id=f"test-captioned-{number}",
                    prompt=prompt,
                    label="harmful",
                    category=one.category,
                    group=one.name,
                    split="test",
                    tags=("captioned",),
                )
    restricted = [one for one in objects() if one.restricted and one.split == split]
    asked = [wording for wording in LOOK_ALIKES if split == "test" or wording != LOOK_ALIKES[-1]]
    for carrier, count in MENTIONS[split].items():
        chosen = _spread([(None, wording, one) for one in restricted for wording in asked], count, rng)
        for number, (_, wording, one) in enumerate(chosen):
            yield _record(
                pictures,
                wording,
                one,
                carrier,
                split,
                rng.randrange(len(_sets(split))),
                ("look-alike",),
                id=f"{split}-{carrier}-mention-{number}",
                label="harmless",
            )


def _spread(
    choices: Sequence[tuple[Frame | None, str, Object]], count: int, rng: random.Random
) -> list[tuple[Any, str, Object]]:
    """``count`` of them, drawn so that objects come equally often."""
    by_object: dict[str, list[tuple[Any, str, Object]]] = {}
    for choice in rng.sample(choices, len(choices)):
        by_object.setdefault(choice[2].name, []).append(choice)
    taken: list[tuple[Any, str, Object]] = []
    turn = 0
    while len(taken) < count:
        queues = list(by_object.values())
        taken += [queue[turn % len(queue)] for queue in queues][: count - len(taken)]
        turn += 1
    return taken


def _sets(split: Split) -> tuple[str, ...]:
    return (*TEST_SETS, *UNSEEN_SETS) if split == "test" else SEEN_SETS


def _record(
    pictures: Pictures,
    wording: str,
    one: Object,
    carrier: str,
    split: Split,
    look: int,
    tags: tuple[str, ...],
    **more: Any,
) -> Record:
    """One record; ``look`` chooses the emoji set or the font."""
    image = None
    if carrier == "typographic":
        image = pictures.word(one, FONTS[look])
    elif carrier != "text":
        sets = [name for name in _sets(split) if pictures.emoji(one, name)]
        chosen = sets[look % len(sets)]
        image = pictures.emoji(one, chosen)
        tags = (*tags, f"set:{chosen}", *(("rendering-unseen",) if chosen in UNSEEN_SETS else ()))
    words = {"image": SHOWN, "typographic": WRITTEN, "text": one.noun, "text+image": f"{one.noun} like the one shown"}
    return Record(
        prompt=wording.format(words[carrier]),
        image=image,
        category=one.category,
        group=one.name,
        carrier=carrier,
        split=split,
        tags=tags,
        **more,
    )


def published(path: Path) -> list[Record]:
    """Published text prompts as records tagged ``published``: ``PUBLISHED`` of each label, drawn evenly by source."""
    given = [json.loads(line) for line in path.read_text().splitlines()]
    groups: dict[str, dict[str, list[Any]]] = {}
    for item in random.Random(SEED).sample(given, len(given)):
        groups.setdefault(item["label"], {}).setdefault(item["category"].partition(":")[0], []).append(item)
    found = []
    for label, sources in groups.items():
        turns = [queue[at] for at in range(PUBLISHED[label]) for queue in sources.values() if at < len(queue)]
        for number, item in enumerate(turns[: PUBLISHED[label]]):
            tags = ("published", f"source:{item['category'].partition(':')[0]}")
            found.append(Record(id=f"published-{label}-{number}", carrier="text", tags=tags, **item))
    return found


def write(packages: Path, out: Path, prompts: Path | None = None) -> dict[str, int]:
    """Write all splits; returns how many records each has."""
    pictures = Pictures(packages, out / "pictures")
    extra = published(prompts) if prompts else []
    counts = {}
    for split in get_args(Split):
        made = [*records(pictures, split), *(record for record in extra if record.split == split)]
        lines = [record.model_dump_json(exclude_defaults=True) for record in made]
        write_atomic(out / f"{split}.jsonl", ("\n".join(lines) + "\n").encode())
        counts[split] = len(made)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--prompts", type=Path)
    options = parser.parse_args()
    print(json.dumps(write(options.packages, options.out, options.prompts)))


if __name__ == "__main__":
    main()
