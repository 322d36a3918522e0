"""Conversations in records: turns of text and pictures, as chat templates take them.

A part is ``{"type": "text", "text": …}`` or ``{"type": "image"}``; a content that is a string is one text. A picture is
a path in its part (``"image": "a.png"``), or the next one of the record's ``image`` or ``images``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

VIDEO = "a video, and videos are not read: show its frames as pictures"
_MODEL = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """A text or a picture of a message.

    Attributes:
        image: the picture's path, relative to the file of the records; None if it is one of the record's.
    """

    model_config = _MODEL

    type: Literal["text", "image"]
    text: str | None = None
    image: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_video(cls, given: Any) -> Any:
        if isinstance(given, dict) and str(given.get("type")).startswith("video"):
            raise ValueError(VIDEO)
        return given

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if self.type == "text" and (self.text is None or self.image is not None):
            raise ValueError("a text has a text, and no image")
        if self.type == "image" and self.text:
            raise ValueError("a picture has no text")
        return self


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = _MODEL

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("content"), str):
            return {**given, "content": [{"type": "text", "text": given["content"]}]}
        return given

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part.text or "" for part in self.content)

    @property
    def pictures(self) -> list[Part]:
        """Its pictures."""
        return [part for part in self.content if part.type == "image"]


def require_conversation(messages: Sequence[Message], given: int) -> None:
    """Refuse messages in which nobody asks, or whose pictures are not those of their record.

    Args:
        given: how many pictures the record names beside them.

    Raises:
        ValueError: with the reason.
    """
    if messages[-1].role != "user":
        raise ValueError(f"the last message is of the {messages[-1].role}; it is the user's, and the answer `response`")
    for number, message in enumerate(messages):
        if message.role == "system" and number:
            raise ValueError("a system turn stands at the beginning only")
        if message.role != "user" and message.pictures:
            raise ValueError(f"the {message.role} shows a picture, and only the user does")
    pictures = [part for message in messages for part in message.pictures]
    unnamed = sum(part.image is None for part in pictures)
    if unnamed != given or (unnamed and unnamed < len(pictures)):
        raise ValueError(
            f"the messages show {len(pictures)} pictures and name {len(pictures) - unnamed} of them, and the record "
            f"names {given} in image or images: name all in one place"
        )
