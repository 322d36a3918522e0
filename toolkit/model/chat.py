"""Requests from what people have: strings and the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from ...adapters.errors import UsageError
from ..data.pictures import MAX_BYTES, as_picture
from .requests import FORMS, Request, Role, Turn

Conversation = Sequence[Mapping[str, Any]]
Prompt = str | Request | Conversation

_PICTURES = ("image", "path", "url", "image_url")  # how a part names its picture
_ELSEWHERE = ("data:", "http://", "https://")
_FILE = 'Write a list such as [{"role": "user", "content": "…"}].'
_PARTS = 'A part is {"type": "text", "text": …} or {"type": "image", "image": …}.'


def is_one(asked: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one string, request or conversation, and not a batch of them."""
    if isinstance(asked, (str, Request)):
        return True
    return isinstance(asked, Sequence) and bool(asked) and all(isinstance(message, Mapping) for message in asked)


def as_requests(asked: Prompt | Sequence[Prompt]) -> list[Request]:
    """One string, request or conversation, or a batch of them, as requests.

    Raises:
        UsageError: it is something else, or a message or picture is none.
    """
    if is_one(asked):
        return [as_request(asked)]  # type: ignore[arg-type]
    if isinstance(asked, Mapping) or not isinstance(asked, Sequence):
        raise UsageError(f"A {type(asked).__name__} is no request.", FORMS)
    return [as_request(one) for one in asked]  # type: ignore[arg-type]


def as_request(asked: Prompt) -> Request:
    """A string, a request or a conversation as a request.

    A conversation keeps its turns as they are. A system turn at its beginning becomes the request's ``system``, and an
    assistant's turn at its end the beginning of the ``answer``, which the model goes on with.

    Args:
        asked: chat messages are ``{"role": …, "content": …}``, the content a string or parts: ``{"type": "text",
            "text": …}``, and ``{"type": "image", "image": …}`` (or ``path``, ``url``, ``base64``) with a picture.

    Raises:
        UsageError: it is something else, or a message or picture is none.
    """
    if isinstance(asked, Request):
        return asked
    if isinstance(asked, str):
        return Request(asked)
    if not isinstance(asked, Sequence) or not all(isinstance(message, Mapping) for message in asked):
        raise UsageError(f"A {type(asked).__name__} is no request.", FORMS)
    turns = [_turn(message) for message in asked]
    system = answer = ""
    if turns and turns[0].role == "system":
        system = _only_text(turns.pop(0))
    if turns and turns[-1].role == "assistant":
        answer = _only_text(turns.pop())
    if not turns or turns[-1].role != "user":
        raise UsageError("Nobody asks anything in these messages.", 'Let the last one be of the role "user".')
    pictures = tuple(picture for turn in turns for picture in turn.pictures)
    prompt = turns[-1].text
    plain = len(turns) == 1 and turns[0].content in ((*pictures, prompt), pictures)
    image = pictures[0] if len(pictures) == 1 else pictures
    return Request(prompt, image, answer, system=system, turns=() if plain and prompt else tuple(turns))


def read_conversation(path: Path) -> Request:
    """The conversation in a file: a JSON list of messages, as :func:`as_request` takes them.

    Paths of pictures are relative to the file.

    Raises:
        UsageError: it is none, or cannot be asked; the file is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB.", "Name pictures by their paths.")
        messages = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as messages ({error}).", f"{_FILE} {_PARTS}") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"{path} holds no list of messages.", f"{_FILE} {_PARTS}")
    try:
        return as_request([_beside(message, path.parent) for message in messages])
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.next_step) from None


def _beside(message: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A message whose pictures are named from ``folder``."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_placed(part, folder) if isinstance(part, dict) else part for part in content]}


def _placed(part: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    named = {name: part[name] for name in _PICTURES if name in part}
    for name, value in named.items():
        if isinstance(value, dict) and "url" in value:
            named[name] = {**value, "url": _from(folder, value["url"])}
        else:
            named[name] = _from(folder, value)
    return {**part, **named}


def _from(folder: Path, name: Any) -> Any:
    return name if not isinstance(name, str) or name.startswith(_ELSEWHERE) else str(folder / name)


def _turn(message: Mapping[str, Any]) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in get_args(Role):
        raise UsageError(f"A message cannot be of the role {role!r}.", f"Roles are {', '.join(get_args(Role))}.")
    if isinstance(content, str):
        return Turn(role, (content,))
    if not isinstance(content, Sequence):
        raise UsageError(f"A message's content is a {type(content).__name__}.", f"Pass a string or parts. {_PARTS}")
    return Turn(role, tuple(_part(part) for part in content))


def _part(part: Any) -> str | Image.Image:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        for name in _PICTURES:
            if (found := part.get(name)) is not None:
                return as_picture(found["url"] if isinstance(found, Mapping) and "url" in found else found)
        if isinstance(part.get("base64"), str):
            return as_picture(f"data:image/any;base64,{part['base64']}")
        raise UsageError("A part of a message names no picture.", _PARTS)
    if str(kind).startswith("video"):
        raise UsageError("A part of a message is a video, and videos are not read.", "Pass its frames as pictures.")
    raise UsageError(f"A part of a message is {kind or type(part).__name__!r}.", _PARTS)


def _only_text(turn: Turn) -> str:
    if turn.pictures:
        raise UsageError(f"The {turn.role} turn shows a picture.", "Show it in a turn of the user.")
    return turn.text
