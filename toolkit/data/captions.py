"""Captioned pictures: what text-guided alignment is trained on, and the texts that are retrieved for a picture.

There is no safety label in them, on purpose: safety is to come from text, not from labelled pictures. A file whose
lines carry one is refused, so that none can slip into training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from ...adapters.artifact.manifest import DataInfo
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.near import did_you_mean
from ..reference.captions import captions_file
from .pictures import open_picture
from .shards import lines_of
from .sources import PREFIX

_LABELS = ("label", "labels", "harmful", "unsafe", "category")
_Words = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Turn(BaseModel):
    """An ordinary request about the picture and its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    instruction: _Words
    answer: _Words


class CaptionedPicture(BaseModel):
    """A picture with what it shows in words.

    Attributes:
        image: picture, relative to the file the line stands in, optionally with a media fragment; None in a list of
            texts for retrieval.
        turns: requests about the picture with their answers; they keep the model answering as before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: _Words
    caption: _Words
    image: str | None = None
    turns: Annotated[tuple[Turn, ...], Field(strict=False)] = ()
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="before")
    @classmethod
    def _refuse_labels(cls, given: Any) -> Any:
        found = [name for name in _LABELS if isinstance(given, dict) and name in given]
        if found:
            raise ValueError(f"it carries {found[0]!r}, but TGA is trained without safety labels on pictures")
        return given

    def picture(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            UsageError: there is none, the file is missing or no picture, or the rectangle leaves it.
        """
        if self.image is None:
            raise UsageError(f"Caption {self.id} has no picture.", "Give its line an image.")
        try:
            return open_picture(self.image, self._folder)
        except UsageError as error:
            raise UsageError(f"Caption {self.id}: {error.message}", error.next_step) from None

    def digest(self) -> str:
        """Hex SHA-256 of everything training sees of this line, pixels included."""
        digest = hashlib.sha256()
        for part in (self.caption, *(text for turn in self.turns for text in (turn.instruction, turn.answer))):
            digest.update(part.encode() + b"\0")
        if self.image is not None:
            picture = self.picture()
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()


def captions_path(text: str) -> Path:
    """A JSONL file of captions, or ``reference`` for the bundled one.

    Raises:
        UsageError: neither.
    """
    path = captions_file() if text == PREFIX else Path(text)
    if not path.is_file():
        hint = did_you_mean(str(text), [PREFIX])
        raise UsageError(
            f"There are no captions at {text}.",
            f"{hint} Pass a JSONL file, or `reference` for the bundled captions.".strip(),
        )
    return path


def load_captions(path: Path | str, *, with_pictures: bool = True) -> list[CaptionedPicture]:
    """Read a JSONL file of captions.

    Args:
        with_pictures: refuse lines without a picture; off for texts that are only retrieved.

    Raises:
        UsageError: there is no such file, or no line in it.
        InvalidArtifact: a line is no caption, carries a safety label, or repeats an id; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There are no captions at {path}.", "Pass a JSONL file, one caption a line.")
    found: dict[str, CaptionedPicture] = {}
    for number, line in lines_of(path):
        if isinstance(line, str):
            raise InvalidArtifact(f"{path}:{number} is no caption: {line}.", "A caption is a sentence or a few.")
        item = _parse(line, f"{path}:{number}")
        if with_pictures and item.image is None:
            raise InvalidArtifact(f"{path}:{number} has no image.", "Training needs a picture on every line.")
        if item.id in found:
            raise InvalidArtifact(f"{path}:{number} repeats the id {item.id!r}.", "Give each caption its own id.")
        item._folder = path.parent
        found[item.id] = item
    if not found:
        raise UsageError(f"{path} holds no captions.", "Write one JSON object a line.")
    return list(found.values())


def _parse(line: bytes, where: str) -> CaptionedPicture:
    try:
        return CaptionedPicture.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise InvalidArtifact(
                f"{where}: {first['msg'].removeprefix('Value error, ')}.",
                "Remove the key from every line: safety comes from text here, not from labelled pictures.",
            ) from None
        place = ".".join(map(str, first["loc"])) or "the line"
        raise InvalidArtifact(
            f"{where} is not a caption: {place}: {first['msg']}.",
            "A caption is a JSON object with id, caption and optionally image and turns of instruction and answer.",
        ) from None


def describe_captions(captions: Iterable[CaptionedPicture]) -> DataInfo:
    """Hash and counts for an adapter's manifest; the order of lines does not matter."""
    captions = sorted(captions, key=lambda item: item.id)
    digest = hashlib.sha256("\n".join(item.digest() for item in captions).encode()).hexdigest()
    counts = {"captions": len(captions), "turns": sum(len(item.turns) for item in captions)}
    return DataInfo(sha256=digest, counts=counts)
