"""What a fit knows of a record; apart, so that the manifest and the methods' protocols can both speak of it."""

from __future__ import annotations

from typing import Literal, Protocol


class Example(Protocol):
    """A labelled record (``toolkit.data.records.Record``)."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> Literal["harmful", "harmless"]: ...
    @property
    def carrier(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def pair(self) -> str | None: ...
    @property
    def group(self) -> str: ...
    @property
    def response(self) -> str | None: ...

    def digest(self) -> str:
        """Hex SHA-256 of everything the model sees of this record, pictures included."""
        ...
