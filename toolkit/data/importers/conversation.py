"""Conversations and lists of pictures in rows: chat messages, and LLaVA's texts with marks for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .rows import Row
from .source import Source

Held = Path | bytes
_ROLES = {name: name for name in ("system", "user", "assistant")}
_NAMES = ("image", "path", "url")  # how a part names its picture
_TEXT, _IMAGE = "text", "image"


class Conversation(NamedTuple):
    """What a user asks last with what was said before, and what follows.

    Attributes:
        messages: as records have them; pictures are those of the record, in their order.
        named: pictures that the messages name themselves, in their order.
        shown: how many pictures they show.
        answer: what the assistant says last; empty if it does not.
    """

    messages: tuple[Mapping[str, Any], ...]
    named: tuple[Held, ...]
    shown: int
    answer: str


def conversation(row: Row, column: str, source: Source) -> Conversation:
    """The messages of a column: a list of objects of ``role`` and ``content``, a text or a list of parts.

    Raises:
        BadRow: they are none, or a picture that they name is not there.
    """
    messages: list[dict[str, Any]] = []
    named: list[Held] = []
    shown = 0
    for number, turn in enumerate(row.items(column, dict), 1):
        one = row.at(f"{column} {number}", turn)
        role = one.one_of("role", _ROLES)
        if isinstance(one.value("content"), str):
            messages.append({"role": role, "content": [{"type": _TEXT, "text": one.value("content")}]})
            continue
        parts = [_part(one.at(f"content {at}", part)) for at, part in enumerate(one.items("content", dict), 1)]
        pictures = [part for part in parts if part["type"] == _IMAGE]
        named += [_held(one, part["image"], source) for part in pictures if part["image"]]
        shown += len(pictures)
        content = [{"type": _IMAGE} if part["type"] == _IMAGE else part for part in parts]
        messages.append({"role": role, "content": content})
    answer = ""
    if messages[-1]["role"] == "assistant":
        answer = "".join(part.get("text", "") for part in messages.pop()["content"])
    if not messages or messages[-1]["role"] != "user":
        raise row.bad(column, "has no request of a user at its end")
    return Conversation(tuple(messages), tuple(named), shown, answer)


def pictures_of(row: Row, column: str, source: Source) -> tuple[Held, ...]:
    """The pictures of a list of paths, of the bytes of files, or of mappings of ``bytes`` and ``path``.

    Raises:
        BadRow: it is none, or a picture is not there.
    """
    found = row.values.get(column)
    if not isinstance(found, list):
        raise row.bad(column, "is no list of pictures", f"Where it holds one, pass --column image={column}.")
    return tuple(_held(row, one, source, column) for one in found)


def _part(part: Row) -> dict[str, Any]:
    kind = part.one_of("type", {_TEXT: _TEXT, _IMAGE: _IMAGE, "image_url": _IMAGE})
    if kind == _TEXT:
        if not isinstance(part.value("text"), str):
            raise part.bad("text", "is no text")
        return {"type": _TEXT, "text": part.value("text")}
    found = next((part.values[name] for name in _NAMES if part.values.get(name)), None)
    return {"type": _IMAGE, "image": found}


def _held(row: Row, found: Any, source: Source, field: str = "image") -> Held:
    if isinstance(found, Mapping):
        found = found.get("bytes") or found.get("path")
    if isinstance(found, bytes) and found:
        return found
    if not isinstance(found, str) or not found:
        raise row.bad(field, f"is {type(found).__name__}, and no picture", "It holds paths or the bytes of files.")
    return source.picture(row, field, found)


def parted(text: str, mark: str) -> list[dict[str, Any]]:
    """The parts of a text in which ``mark`` stands for each picture."""
    parts: list[dict[str, Any]] = []
    for at, words in enumerate(text.split(mark)):
        parts += [{"type": _IMAGE}] if at else []
        parts += [{"type": _TEXT, "text": words.strip()}] if words.strip() else []
    return parts
