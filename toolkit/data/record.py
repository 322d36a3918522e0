"""One labelled example.

Its picture lies in the file that the record stands in, or is a file named by a path relative to it, see
:mod:`.pictures`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from PIL import Image
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from ...adapters.errors import UsageError
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
        prompt: what the user writes, without turn markup.
        image: picture, relative to the file the record stands in; of one that lies in this file, only a name.
        response: for a harmless record the expected answer; for a harmful one the answer whose
            appearance counts as a successful attack.
        carrier: how the harm arrives; where it is left out, :data:`PICTURED` with a picture, else ``text``.
        pair: id of the counterpart with the other label.
        group: what it is about, such as a question asked in several ways; a split keeps its records together.
        tags: free marks that evaluation can report apart, such as ``look-alike``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    prompt: str
    image: str | None = None
    response: str | None = None
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
        if isinstance(given, dict) and given.get("image") is not None and "carrier" not in given:
            return {**given, "carrier": PICTURED}
        return given

    def __repr__(self) -> str:
        """Id, label, carrier, split and the beginning of the prompt; what is not given is left out."""
        prompt = self.prompt if len(self.prompt) <= 60 else f"{self.prompt[:59]}…"
        image = f", image={self.image!r}" if self.image else ""
        return f"Record({self.id!r}, {self.label}, {self.carrier}, {self.split}, {prompt!r}{image})"

    __str__ = __repr__

    def lying(self, shard: Shard, number: int) -> Self:
        """Itself, now known to be a row of a file."""
        self._row = shard, number
        return self

    @property
    def pictured(self) -> bool:
        """Whether it has a picture."""
        return self.image is not None

    @property
    def length(self) -> int:
        """Characters of the prompt."""
        return len(self.prompt)

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
        """The picture in RGB, or None for a text record.

        Raises:
            UsageError: the file is missing or no picture, or the rectangle leaves it.
        """
        if self.image is None:
            return None
        try:
            held = self.held()
            return open_picture(self.image, self.folder) if held is None else as_picture(held)
        except UsageError as error:
            raise UsageError(f"{self.place}: {error.message}", error.next_step) from None

    def require_picture(self) -> None:
        """Refuse a picture whose file is not there; none is decoded.

        Raises:
            UsageError: naming the record and the file.
        """
        if self.image is None or (self._row is not None and self._row[0].packed):
            return
        try:
            there = picture_file(self.image, self.folder).is_file()
        except UsageError:
            there = False
        if not there:
            self.picture()  # says what is wrong

    @property
    def folder(self) -> Path:
        """What the paths of its pictures are relative to."""
        return Path() if self._row is None else self._row[0].path.parent

    def held(self) -> bytes | None:
        """The bytes of the picture, if they lie in the record's file.

        Raises:
            UsageError: they cannot be read.
        """
        if self._row is None:
            return None
        shard, number = self._row
        try:
            return shard.picture(number)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise UsageError(f"its picture cannot be read ({error}).", "Write the file again.") from None

    def digest(self) -> str:
        """Hex SHA-256 of what the model sees and how it is labelled, pixels included."""
        digest = hashlib.sha256()
        for part in (self.prompt, self.label, self.carrier, self.split, self.response or ""):
            digest.update(part.encode() + b"\0")
        if (picture := self.picture()) is not None:
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()
