"""Whether a chat template puts everything that a conversation says where it belongs.

A template that knows no system turn, one turn only or no text between pictures drops or moves the rest in silence. So a
conversation of the same form is rendered, once, whose texts are marks that no template holds, and they are looked for.

A template may put the pictures of a turn, all together, before or after its text: that is how a model that wants its
pictures first was trained. It may not take apart what is interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple

from ...adapters.errors import UsageError
from ..families import Family

Message = Mapping[str, Any]
_PLACEHOLDERS = ("image_token", "boi_token")  # how processors and tokenizers call what stands for a picture
_KEPT = 512  # forms that are remembered
_SHOWN = 60  # letters of a text that an error tells
_MARK = "qx{}xq"
_SYSTEM, _IMAGE, _TEXT, _BLANK = "system", "image", "text", "blank"
_FIRST = "Put the pictures before the text, or ask about one picture at a time."
_SINGLE = "Ask with a single prompt."


class _Part(NamedTuple):
    """A part of a conversation: which turn it is of, whose, what it is, and its text."""

    turn: int
    role: str
    kind: str
    text: str


class Placing:
    """The forms of conversations that the template of a processor is known to keep."""

    def __init__(self, family: Family, processor: Any) -> None:
        """Know none yet."""
        self._family, self._processor = family, processor
        self._known: set[tuple[Any, ...]] = set()

    @cached_property
    def _pictures(self) -> list[str]:
        """What may stand for a picture in a rendered prompt: what the family says, or what processors call so."""
        owners = (self._processor, self._processor.tokenizer)
        named = [getattr(one, name, None) for one in owners for name in _PLACEHOLDERS]
        own = [self._family.picture_text(self._processor)[0]] if isinstance(named[0], str) else []
        return [one for one in dict.fromkeys((*own, *named)) if isinstance(one, str) and one]

    def require(self, messages: Sequence[Message], rendered: str) -> None:
        """Refuse a conversation of which the template drops or moves something.

        Args:
            messages: as chat templates take them.
            rendered: what the template makes of them.

        Raises:
            UsageError: naming what is dropped or moved.
        """
        parts = _parts(messages)
        for part in parts:  # a template may also drop a text for what it says
            if part.kind == _TEXT and part.text.strip() not in rendered:
                raise _dropped(part, parts)
        form = (str(self._processor.chat_template), *((turn, role, kind) for turn, role, kind, _ in parts))
        if form in self._known:
            return
        places = self._places(parts, self._family.render(self._processor, _marked(messages)))
        turns = [list(turn) for _, turn in groupby(zip(parts, places, strict=True), lambda one: one[0].turn)]
        # The operator's words may also stand with the last turn, as some templates have it.
        _require_order([[(part.kind, at) for part, at in turn] for turn in turns if turn[0][0].role != _SYSTEM])
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known.add(form)

    def _places(self, parts: Sequence[_Part], marked: str) -> list[int]:
        """Where each part stands in what is made of the marked conversation; -1 of a blank text."""
        found = [marked.find(_MARK.format(number)) for number in range(len(parts))]
        if lost := next((part for part, at in zip(parts, found, strict=True) if part.kind == _TEXT and at < 0), None):
            raise _dropped(lost, parts)
        shown = iter(self._shown(sum(part.kind == _IMAGE for part in parts), marked))
        return [next(shown) if part.kind == _IMAGE else at for part, at in zip(parts, found, strict=True)]

    def _shown(self, count: int, marked: str) -> list[int]:
        if not count:
            return []
        found = [[one.start() for one in re.finditer(re.escape(text), marked)] for text in self._pictures]
        if (fit := next((places for places in found if len(places) == count), None)) is not None:
            return fit
        raise UsageError(
            f"This model's chat template shows {max(map(len, found), default=0)} of the {count} pictures of these "
            "messages.",
            "Show them in the last turn, one at a time.",
        )


def _parts(messages: Sequence[Message]) -> list[_Part]:
    return [
        _Part(turn, message["role"], _kind(part), part.get("text", ""))
        for turn, message in enumerate(messages)
        for part in message["content"]
    ]


def _kind(part: Message) -> str:
    return _IMAGE if part["type"] == "image" else _TEXT if part["text"].strip() else _BLANK


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The same with a mark in the place of each text, numbered like the parts."""
    number = 0
    made: list[Message] = []
    for message in messages:
        content = []
        for part in message["content"]:
            content.append({"type": "text", "text": _MARK.format(number)} if _kind(part) == _TEXT else part)
            number += 1
        made.append({"role": message["role"], "content": content})
    return made


def _dropped(part: _Part, parts: Sequence[_Part]) -> UsageError:
    if part.role == _SYSTEM:
        return UsageError(
            "This model's chat template has no place for a system turn.", "Put the text before the prompt instead."
        )
    before = " before" if part.turn < parts[-1].turn else ""
    return UsageError(
        f"This model's chat template drops what the {part.role} said{before}: {part.text.strip()[:_SHOWN]!r}.",
        _SINGLE if before else "It is not a template for what is asked here; give the checkpoint the model's own.",
    )


def _require_order(turns: Sequence[Sequence[tuple[str, int]]]) -> None:
    """Turns follow each other, and parts of a turn, or its pictures and its texts, do.

    Args:
        turns: of each part its kind and its place.

    Raises:
        UsageError: they do not.
    """
    said = [[one for one in turn if one[0] != _BLANK] for turn in turns]
    ends = [(min(places), max(places)) for turn in said if (places := [at for _, at in turn])]
    if any(last > first for (_, last), (first, _) in pairwise(ends)):
        raise UsageError("This model's chat template puts turns, or their pictures, in another order.", _SINGLE)
    for turn in said:
        places = [at for _, at in turn]
        if places == sorted(places):
            continue
        kinds = [kind for kind, _ in groupby(turn, lambda one: one[0])]
        swapped = list(chain.from_iterable([at for kind, at in turn if kind == one] for one in reversed(kinds)))
        if len(kinds) != 2 or swapped != sorted(swapped):
            raise UsageError("This model's chat template takes apart text and pictures that stand in turns.", _FIRST)
