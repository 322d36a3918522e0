"""Pairs of a harmful and a harmless request in text that differ in nothing but what they ask for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice, product

from ..record import Record
from .packages import Found
from .texts import LOOK_ALIKE, texts

Pair = tuple[Record, Record]  # harmful and harmless; their split is drawn later
_FROM_PACKAGES = 4  # at most one of so many pairs


def most_pairs(packages: Sequence[Found] = ()) -> int:
    """How many pairs there can be."""
    own = len(texts().topics) * len(texts().phrasings)
    return own + min(sum(len(one.prompts) for one in packages), own // (_FROM_PACKAGES - 1))


def text_pairs(count: int, packages: Sequence[Found] = (), *, seed: int = 0) -> list[Pair]:
    """So many pairs, at most a fourth of them with a prompt of a package.

    Args:
        count: at most :func:`most_pairs`.
        seed: of phrasings, and of which prompts are taken.
    """
    draw = random.Random(f"{seed} pairs")
    foreign = list(islice(_foreign(packages, draw), count // _FROM_PACKAGES))
    own = list(islice(_own(draw), count - len(foreign)))
    return [*own, *foreign]


def _own(draw: random.Random) -> Iterator[Pair]:
    """Every topic once, then once more in another phrasing, and so on; its harmless neighbours take turns."""
    known = texts()
    phrasings = {topic.name: draw.sample(range(len(known.phrasings)), len(known.phrasings)) for topic in known.topics}
    for turn, (at, topic) in product(range(len(known.phrasings)), enumerate(known.topics)):
        number = phrasings[topic.name][turn]
        alike = (turn + at) % 2 == 0
        yield _pair(
            f"{topic.name}-{number + 1}",
            known.phrasings[number].format(topic.harm),
            known.phrasings[number].format(topic.alike if alike else topic.ordinary),
            category=topic.category,
            group=topic.name,
            tags=(LOOK_ALIKE,) if alike else (),
        )


def _foreign(packages: Sequence[Found], draw: random.Random) -> Iterator[Pair]:
    """Prompts of packages in turn, each beside a harmless request that opens with the same word, if there is one."""
    known = texts()
    shuffled = [[(one, at) for at in draw.sample(range(len(one.prompts)), len(one.prompts))] for one in packages]
    taken = set[str]()
    for turn, (package, at) in enumerate(_in_turn(shuffled)):
        prompt, general = package.prompts[at], turn % len(known.general)
        first = prompt.partition(" ")[0]
        openings = [one for one in known.openings if one.startswith(f"{first} ")] or list(known.openings)
        draw.shuffle(openings)
        asked = [one.format(known.general[general]) for one in (*openings, *known.openings)]
        harmless = next((one for one in asked if one not in taken), None)
        if harmless is None:
            return
        taken.add(harmless)
        name = package.name.lower()
        yield _pair(f"{name}-{at + 1}", prompt, harmless, category=name, group=f"general-{general + 1}")


def _in_turn(lists: Sequence[Sequence[tuple[Found, int]]]) -> Iterator[tuple[Found, int]]:
    longest = max(map(len, lists), default=0)
    return chain.from_iterable((one[at] for one in lists if at < len(one)) for at in range(longest))


def _pair(name: str, harmful: str, harmless: str, *, category: str, group: str, tags: tuple[str, ...] = ()) -> Pair:
    """Two records that name each other."""
    ids = f"{name}-harmful", f"{name}-harmless"
    shared = {"category": category, "group": group, "carrier": "text", "split": "fit"}
    return (
        Record.model_validate({**shared, "id": ids[0], "prompt": harmful, "label": "harmful", "pair": ids[1]}),
        Record.model_validate(
            {**shared, "id": ids[1], "prompt": harmless, "label": "harmless", "pair": ids[0], "tags": tags}
        ),
    )
