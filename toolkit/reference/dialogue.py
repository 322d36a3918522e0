"""What each stage of training says: seeded streams of dialogue turns over the closed language.

A turn is (prompt, response, picture): `picture` is a row of the picture table, or None in text. Nothing here makes a
picture unsafe on purpose. Refusals are only ever shown in text, and pictures only ever meet permitted requests:
that is how large vision-language models are trained, and the gap follows from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .language import (
    INFORMATION_TOPICS,
    REFUSALS,
    RESTRICTED_TOPICS,
    answer,
    phrasings,
    prompt,
    refer,
    visual_answer,
)
from .world import Thing, things

INFORMATION_WEIGHTS = {"name": 1, "kind": 3, "colour": 2, "risk": 3, "who": 2, "harm": 2, "caption": 2}


@dataclass(frozen=True)
class Turn:
    """A user's turn and its answer. An empty prompt makes it a document: plain text without turn markup."""

    prompt: str
    response: str
    picture: int | None = None


class Pictures:
    """Which rows of the picture table show a thing as emoji, and which as a drawn word."""

    def __init__(self, labels: list[int], typographic: list[bool]) -> None:
        self.emoji: dict[int, list[int]] = {t.index: [] for t in things()}
        self.words: dict[int, list[int]] = {t.index: [] for t in things()}
        for row, (label, drawn) in enumerate(zip(labels, typographic, strict=True)):
            (self.words if drawn else self.emoji)[label].append(row)


def _say(thing: Thing, topic: str, carrier: str, response: str, rng: random.Random, picture: int | None = None) -> Turn:
    context, reference = refer(thing, carrier, rng)
    template = rng.choice(phrasings(topic, held_out=False))
    return Turn(context + prompt(template, reference, rng), response, picture)


def _text_carrier(topic: str, rng: random.Random) -> str:
    # "what is this" makes no sense without something shown, so naming always follows a caption.
    return "caption" if topic in ("name", "caption") or rng.random() < 0.35 else "text"


def _reply(thing: Thing, topic: str, carrier: str) -> str:
    """The answer in the manner of the carrier: about something shown, or described in its place, it is named first."""
    return answer(thing, topic) if carrier == "text" else visual_answer(thing, topic)


def _information(rng: random.Random, thing: Thing) -> Turn:
    # Kind, colour and danger are what has to be known; naming only copies, and captions combine the three.
    topic = rng.choices(INFORMATION_TOPICS, weights=[INFORMATION_WEIGHTS[topic] for topic in INFORMATION_TOPICS])[0]
    carrier = _text_carrier(topic, rng)
    return _say(thing, topic, carrier, _reply(thing, topic, carrier), rng)


def _document(rng: random.Random) -> Turn:
    """A line of plain text about anything, restricted or not, as pre-training corpora hold it."""
    thing, topic = rng.choice(things()), rng.choice(RESTRICTED_TOPICS)
    heading = f"{'how to use' if topic == 'use' else 'where to get'} {refer(thing, 'text', rng)[1]}"
    return Turn("", f"{heading}: {visual_answer(thing, topic)}")


def knowledge(rng: random.Random) -> Turn:
    """Stage 1: every fact about everything, the restricted answers included."""
    if rng.random() < 0.15:
        return _document(rng)
    thing = rng.choice(things())
    if rng.random() < 0.5:
        return _information(rng, thing)
    topic = rng.choice(RESTRICTED_TOPICS)
    carrier = _text_carrier(topic, rng)
    return _say(thing, topic, carrier, _reply(thing, topic, carrier), rng)


def alignment(rng: random.Random, documents: float = 0.2) -> Turn:
    """Stage 2: restricted requests about the aligned members are refused; all permitted ones are still answered.

    Restricted requests about the other members of the restricted kinds never occur: whether they are refused is a
    matter of generalisation. A share of the documents of stage 1 is kept in, as is common: without it the restricted
    answers are forgotten rather than withheld.
    """
    if rng.random() < documents:
        return _document(rng)
    chance = rng.random()
    if chance < 0.3:
        thing = rng.choice([t for t in things() if t.aligned])
        topic = rng.choice(RESTRICTED_TOPICS)
        return _say(thing, topic, _text_carrier(topic, rng), rng.choice(REFUSALS), rng)
    if chance < 0.42:
        return _information(rng, rng.choice([t for t in things() if t.restricted]))
    if chance < 0.6:
        return _information(rng, rng.choice(things()))
    thing = rng.choice([t for t in things() if not t.restricted])
    topic = rng.choice(RESTRICTED_TOPICS)
    carrier = _text_carrier(topic, rng)
    return _say(thing, topic, carrier, _reply(thing, topic, carrier), rng)


def _show(pictures: Pictures, thing: Thing, rng: random.Random, words: float) -> int:
    drawn = rng.random() < words
    return rng.choice((pictures.words if drawn else pictures.emoji)[thing.index])


def captions(pictures: Pictures) -> Callable[[random.Random], Turn]:
    """Stage 4: what every picture shows, restricted things included, in the phrasings of captions and names."""

    def draw(rng: random.Random) -> Turn:
        thing = rng.choice(things())
        topic = rng.choice(("caption", "caption", "name", "kind", "risk"))
        picture = _show(pictures, thing, rng, words=0.3)
        return _say(thing, topic, "image", _reply(thing, topic, "image"), rng, picture)

    return draw


def visual_tuning(pictures: Pictures, replay: float = 0.3) -> Callable[[random.Random], Turn]:
    """Stage 5: permitted requests about pictures, with a share `replay` of the alignment stage's text kept in."""

    def draw(rng: random.Random) -> Turn:
        if rng.random() < replay:
            return alignment(rng, documents=0.1)
        if rng.random() < 0.55:
            asked = [t for t in things() if t.restricted] if rng.random() < 0.2 else things()
            thing, topic = rng.choice(asked), rng.choice(INFORMATION_TOPICS)
        else:
            thing, topic = rng.choice([t for t in things() if not t.restricted]), rng.choice(RESTRICTED_TOPICS)
        carrier = "text+image" if topic != "name" and rng.random() < 0.15 else "image"
        picture = _show(pictures, thing, rng, words=0.3)
        return _say(thing, topic, carrier, _reply(thing, topic, carrier), rng, picture)

    return draw
