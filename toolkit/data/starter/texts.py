"""What is asked: topics by category, and the phrasings that they are put into."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOOK_ALIKE = "look-alike"


@dataclass(frozen=True)
class Topic:
    """A harm and its harmless neighbours, as what follows "how to".

    Attributes:
        category: slug of a hazard.
        name: of the topic, which keeps its requests in one split.
        harm: named, never described.
        alike: harmless, in the same alarming words.
        ordinary: harmless, in the same form.
    """

    category: str
    name: str
    harm: str
    alike: str
    ordinary: str


@dataclass(frozen=True)
class Texts:
    """All of ``texts.toml``.

    Attributes:
        hazards: what the field calls each category.
        phrasings: of a topic; ``openings``: of a request beside one of a package. ``{}`` is the place of what is asked.
        general: harmless things to ask.
    """

    topics: tuple[Topic, ...]
    hazards: dict[str, str]
    phrasings: tuple[str, ...]
    openings: tuple[str, ...]
    general: tuple[str, ...]


@cache
def texts() -> Texts:
    """The texts, read once."""
    body = tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))

    def topics() -> Iterator[Topic]:
        # The first of each category, then the second ones: whatever part is taken holds all categories.
        for number in range(max(len(one["topics"]) for one in body["category"])):
            for one in body["category"]:
                if number < len(one["topics"]):
                    yield Topic(one["name"], f"{one['name']}-{number + 1}", *one["topics"][number])

    return Texts(
        topics=tuple(topics()),
        hazards={one["name"]: one["hazard"] for one in body["category"]},
        phrasings=tuple(body["phrasings"]),
        openings=tuple(body["openings"]),
        general=tuple(body["general"]),
    )
