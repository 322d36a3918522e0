"""One labelled example.

Its picture lies in the file that the record stands in, or is a file named by a path relative to it, see
:mod:`.pictures`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from ...adapters.errors import UsageError
from .messages import VIDEO, Message, require_conversation
from .pictures import as_picture, open_picture, picture_file
from .shards import Shard

Split = Literal["fit", "calibration", "test"]
Label = Literal["harmful", "harmless"]
Carrier = Literal["text", "image", "typographic", "text+image", "adversarial"]
SPLITS: tuple[Split, ...] = get_args(Split)
LABELS: tuple[Label, ...] = get_args(Label)
PICTURED: Carrier = "image"  # the carrier of a picture of which nothing else is said
SEEN: tuple[Carrier, ...] = ("image", "text+image", "typographic")  # carriers of which a picture is a part
CARRIERS: tuple[Carrier, ...] = ("text", "image", "text+image", "typographic", "adversarial")


class Record(BaseModel):
    """One labelled example.

    Attributes:
        messages: a conversation in the place of the prompt, up to what the user asks last.
        prompt: what the user writes, without turn markup; of a conversation the text of its last message.
        image: picture, relative to the file the record stands in; of one that lies in this file, only a name.
        images: several of them. They stand before the prompt, or where the messages have pictures without a name.
        response: for a harmless record the expected answer; for a harmful one the answer whose
            appearance counts as a successful attack.
        answers: all answers that people gave or the publishers accept, where a benchmark counts by several; for judges
            and benchmarks' own metrics, never shown to a model.
        intent: what it asks for in words, where its prompt leaves that to the picture; for judges, never shown to a
            model.
        carrier: how the harm arrives; where it is left out, :data:`PICTURED` with a picture, else ``text``.
        pair: id of the counterpart with the other label.
        group: what it is about, such as a question asked in several ways; a split keeps its records together.
        tags: free marks that evaluation can report apart, such as ``look-alike``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    messages: tuple[Message, ...] = ()
    prompt: str = Field(default=cast(str, None), validate_default=True)
    image: str | None = None
    images: tuple[str, ...] = ()
    response: str | None = None
    answers: tuple[str, ...] = ()
    intent: str = ""
    label: Label
    category: str = ""
    carrier: Carrier = "text"
    split: Split
    pair: str | None = None
    group: str = ""
    tags: tuple[str, ...] = ()
    _row: tuple[Shard, int] | None = PrivateAttr(default=None)  # a file, and the number of its row

    @model_validator(mode="before")
    @classmethod
    def _derive_carrier(cls, given: Any) -> Any:
        if isinstance(given, dict) and any(given.get(name) for name in ("video", "videos")):
            raise ValueError(f"there is {VIDEO} (images)")
        if isinstance(given, dict) and "carrier" not in given and _shows(given):
            return {**given, "carrier": PICTURED}
        return given

    @field_validator("prompt", mode="before")
    @classmethod
    def _of_messages(cls, given: Any, info: ValidationInfo) -> Any:
        """What is asked last, where there are messages."""
        if given is not None:
            if info.data.get("messages"):
                raise ValueError("there are messages, too, and their last one is the prompt: leave one of them out")
            return given
        if "messages" not in info.data:  # which are wrong, and told
            return ""
        if not info.data["messages"]:
            raise PydanticKnownError("missing")
        return info.data["messages"][-1].text

    @model_validator(mode="after")
    def _require_pictures(self) -> Self:
        if self.image is not None and self.images:
            raise ValueError("there are image and images: leave one of them out")
        if self.messages:
            require_conversation(self.messages, len(self._named))
        return self

    def __repr__(self) -> str:
        """Id, label, carrier, split and the beginning of the prompt; what is not given is left out."""
        prompt = self.prompt if len(self.prompt) <= 60 else f"{self.prompt[:59]}…"
        image = f", image={self.image!r}" if self.image else ""
        image += f", messages={len(self.messages)}" if self.messages else ""
        image += f", images={len(self.image_names)}" if self.pictured and not self.image else ""
        return f"Record({self.id!r}, {self.label}, {self.carrier}, {self.split}, {prompt!r}{image})"

    __str__ = __repr__

    def lying(self, shard: Shard, number: int) -> Self:
        """Itself, now known to be a row of a file."""
        self._row = shard, number
        return self

    @property
    def pictured(self) -> bool:
        """Whether it has a picture."""
        return bool(self.image_names)

    @property
    def _named(self) -> tuple[str, ...]:
        """Pictures that are named beside the messages."""
        return self.images if self.image is None else (self.image,)

    @property
    def image_names(self) -> tuple[str, ...]:
        """What names each of its pictures, in the order in which they are shown."""
        shown = (part.image for message in self.messages for part in message.pictures if part.image is not None)
        return self._named or tuple(shown)

    @property
    def said(self) -> bytes:
        """The prompt, or the conversation without its pictures."""
        if not self.messages:
            return self.prompt.encode()
        return json.dumps([[one.role, *(part.text for part in one.content)] for one in self.messages]).encode()

    @property
    def plain(self) -> bool:
        """Whether it is a prompt with one picture at most."""
        return not self.messages and len(self.image_names) < 2

    @property
    def length(self) -> int:
        """Characters of the prompt, or of all messages."""
        return sum(len(message.text) for message in self.messages) if self.messages else len(self.prompt)

    @property
    def stretch(self) -> int:
        """Which stretch of its files it stands in, of those whose pictures are worth reading together."""
        return 0

    @property
    def place(self) -> str:
        """Its id, and where it stands, for errors."""
        if self._row is None:
            return f"Record {self.id}"
        shard, number = self._row
        return f"Record {self.id} ({shard.place(number)})"

    def picture(self) -> Image.Image | None:
        """The only picture in RGB, or None for a text record.

        Raises:
            UsageError: there are several; or see :meth:`pictures`.
        """
        if len(self.image_names) > 1:
            raise UsageError(
                f"{self.place} shows {len(self.image_names)} pictures, and one is wanted here.", "Leave it out."
            )
        return next(iter(self.pictures()), None)

    def pictures(self) -> tuple[Image.Image, ...]:
        """The pictures in RGB, in the order in which they are shown.

        Raises:
            UsageError: a file is missing or no picture, or the rectangle leaves it.
        """
        return tuple(self._opened(at, name) for at, name in enumerate(self.image_names))

    def _opened(self, at: int, name: str) -> Image.Image:
        try:
            held = self.held(at)
            return open_picture(name, self.folder) if held is None else as_picture(held)
        except UsageError as error:
            raise UsageError(f"{self.place}: {error.message}", error.next_step) from None

    def require_picture(self) -> None:
        """Refuse a picture whose file is not there; none is decoded.

        Raises:
            UsageError: naming the record and the file.
        """
        if self._row is not None and self._row[0].packed and self._named:
            return
        for at, name in enumerate(self.image_names):
            try:
                there = picture_file(name, self.folder).is_file()
            except UsageError:
                there = False
            if not there:
                self._opened(at, name)  # says what is wrong

    @property
    def folder(self) -> Path:
        """What the paths of its pictures are relative to."""
        return Path() if self._row is None else self._row[0].path.parent

    def held(self, at: int = 0) -> bytes | None:
        """The bytes of a picture, if they lie in the record's file.

        Raises:
            UsageError: they cannot be read.
        """
        if self._row is None or not self._named:  # what messages name are files
            return None
        shard, number = self._row
        try:
            return shard.picture(number, at)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise UsageError(f"its picture cannot be read ({error}).", "Write the file again.") from None

    def digest(self) -> str:
        """Hex SHA-256 of what the model sees and how it is labelled, pixels included."""
        digest = hashlib.sha256()
        for part in (self.prompt, self.label, self.carrier, self.split, self.response or ""):
            digest.update(part.encode() + b"\0")
        if self.messages:
            digest.update(self.said + b"\0")
        for picture in self.pictures():
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()


def _shows(given: dict[Any, Any]) -> bool:
    """Whether what shall be a record shows a picture."""
    if given.get("image") is not None or given.get("images"):
        return True
    messages = given.get("messages")
    plain = [one.model_dump() if isinstance(one, Message) else one for one in _items(messages)]
    parts = [part for one in plain if isinstance(one, dict) for part in _items(one.get("content"))]
    return any(isinstance(part, dict) and part.get("type") == "image" for part in parts)


def _items(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else ()
