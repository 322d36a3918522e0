"""The messages of a chat request as what the model is asked; pictures come as data URLs and are never fetched."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from PIL import Image

from ..adapters.errors import SafetykitError
from ..toolkit.data.pictures import FORMATS, as_picture
from ..toolkit.model.chat import as_request
from ..toolkit.model.requests import Request
from .errors import ApiError

_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant")
_DATA = "data:image/"


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        pictures: at most so many.
        pixels: of all its pictures together.
    """

    pictures: int
    pixels: int


def read_messages(messages: Sequence[Mapping[str, Any]], limits: Limits) -> Request:
    """What the messages ask.

    Raises:
        ApiError: naming the message or part that is wrong, not supported or too large.
    """
    reader = _Reader(limits)
    turns = [reader.turn(message, f"messages.{at}") for at, message in enumerate(messages)]
    for at, turn in enumerate(turns[1:], 1):
        if turn["role"] == "system":
            _refuse(f"messages.{at}.role", "A system message stands first. Put it there.")
    if turns[-1]["role"] != "user":
        _refuse(
            f"messages.{len(turns) - 1}.role",
            "The last message is the user's; an answer cannot be begun for the model.",
        )
    try:
        return as_request(turns)
    except SafetykitError as error:
        _refuse("messages", str(error))


class _Reader:
    """Reads messages and counts their pictures."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._pictures, self._pixels = limits, 0, 0

    def turn(self, message: Mapping[str, Any], place: str) -> dict[str, Any]:
        """A message as :func:`as_request` takes it."""
        given = {name: one for name, one in message.items() if one not in (None, [])}  # as clients send answers back
        role, content = given.pop("role", None), given.pop("content", None)
        if given:
            name = next(iter(given))
            _refuse(
                f"{place}.{name[:100]}",
                f"{name[:100]} of a message is not supported. Leave it out.",
                "unsupported_parameter",
            )
        if role not in _ROLES:
            _refuse(f"{place}.role", f"A message's role is one of {', '.join(_ROLES)}.")
        if isinstance(content, str):
            parts: list[Any] = [content]
        elif isinstance(content, list):
            parts = [self._part(part, f"{place}.content.{at}", role) for at, part in enumerate(content)]
        else:
            _refuse(f"{place}.content", "A message's content is text or a list of parts.")
        return {"role": "system" if role in _SYSTEM else role, "content": parts}

    def _part(self, part: Any, place: str, role: str) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str) and set(part) == {"type", "text"}:
            return part["text"]
        if kind == "image_url" and set(part) == {"type", "image_url"}:
            if role != "user":
                _refuse(place, f"A message of the role {role} holds text only.")
            return {"type": "image", "image": self._picture(part["image_url"], f"{place}.image_url")}
        if kind in ("text", "image_url"):
            _refuse(place, f"A part of the type {kind} is of another form.")
        if "video" in str(kind):
            _refuse(place, "Videos are not read. Send frames of it as pictures.", "unsupported_parameter")
        _refuse(place, "A part is of the type text or image_url.", "unsupported_parameter")

    def _picture(self, value: Any, place: str) -> Image.Image:
        url = value.get("url") if isinstance(value, dict) else None
        if not isinstance(url, str) or not set(value) <= {"url", "detail"}:
            _refuse(place, 'A picture is {"url": "data:image/…;base64,…"}.')
        if value.get("detail") not in (None, "auto"):
            _refuse(f"{place}.detail", "The detail of a picture is the model's own. Say auto.", "unsupported_parameter")
        head, _, data = url.partition(";base64,")
        if not head.startswith(_DATA) or not data:
            _refuse(
                f"{place}.url",
                "Pictures come as data URLs (data:image/…;base64,…). Nothing is fetched.",
                "invalid_image_url",
            )
        self._pictures += 1
        if self._pictures > self._limits.pictures:
            _refuse(place, f"A request holds at most {self._limits.pictures} pictures.", "too_many_images")
        try:
            file = base64.b64decode(data, validate=True)
            self._require_small(file, place)
            return as_picture(file)
        except binascii.Error:
            _refuse(f"{place}.url", "The picture is not base64.", "invalid_base64")
        except SafetykitError as error:
            _refuse(f"{place}.url", str(error), "invalid_image")

    def _require_small(self, file: bytes, place: str) -> None:
        """Refuse pixels beyond the limit before any is decoded; what is no picture is found later."""
        try:
            with Image.open(io.BytesIO(file), formats=FORMATS) as picture:
                self._pixels += picture.width * picture.height
        except Exception:  # decoders raise whatever the bytes lead them to
            return
        if self._pixels > self._limits.pixels:
            _refuse(
                place,
                f"The pictures of a request have at most {self._limits.pixels:,} pixels together.",
                "image_too_large",
            )


def _refuse(param: str, message: str, code: str = "invalid_value") -> NoReturn:
    raise ApiError(400, message, param=param, code=code)
