"""Columns of pictures, one a row (``image``) or several (``images``): paths, bytes of files, or structs of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

BYTES, PATH = "bytes", "path"
_LENGTH = 8  # bytes in which the length of a picture stands before it


@dataclass(frozen=True)
class PictureColumn:
    """A column.

    Attributes:
        kind: the type of one picture.
        many: whether a row holds a list of them.
    """

    name: str
    kind: Any
    many: bool

    @classmethod
    def of(cls, schema: Any, name: str, *, many: bool) -> Self | None:
        """The column of that name; None without one.

        Raises:
            ValueError: it holds no pictures; with its type.
        """
        import pyarrow.types as types

        if name not in schema.names:
            return None
        kind = schema.field(name).type
        listed = types.is_list(kind) or types.is_large_list(kind)
        found = cls(name, kind.value_type if many and listed else kind, many)
        if not found._pictured or (many and not listed and not types.is_null(kind)):
            raise ValueError(f"the column {name} is {kind}, which is no {'list of pictures' if many else 'picture'}")
        return found

    @property
    def _pictured(self) -> bool:
        import pyarrow.types as types

        kind = self.kind.value_type if types.is_dictionary(self.kind) else self.kind
        if types.is_struct(kind):
            return {field.name for field in kind} == {BYTES, PATH}
        return self.binary or bool(types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))

    @property
    def struct(self) -> bool:
        """Whether a picture is a struct of bytes and path."""
        import pyarrow.types as types

        return bool(types.is_struct(self.kind))

    @property
    def binary(self) -> bool:
        """Whether a picture is the bytes of its file."""
        import pyarrow.types as types

        return bool(types.is_binary(self.kind) or types.is_large_binary(self.kind))

    @property
    def empty(self) -> bool:
        """Whether no row holds anything."""
        import pyarrow.types as types

        return bool(types.is_null(self.kind))

    @property
    def packed(self) -> bool:
        """Whether pictures lie in the file."""
        return self.struct or self.binary

    def named(self, value: Any, unnamed: str) -> str | None:
        """What a record says of a picture: its path, or another name; None without one."""
        if value is None:
            return None
        if self.struct:
            return value[PATH] or (unnamed if value[BYTES] is not None else None)
        return unnamed if self.binary else value

    def names(self, values: Sequence[Any] | None, unnamed: str) -> list[str] | None:
        """The same of a list of pictures; None of an empty one."""
        return [self.named(value, f"{unnamed}#{at}") or "" for at, value in enumerate(values or (), 1)] or None

    def held(self, value: Any) -> bytes:
        """The bytes of a picture; none where they lie elsewhere."""
        if not self.packed or value is None:
            return b""
        return (value[BYTES] if self.struct else value) or b""

    def joined(self, values: Sequence[Any] | None) -> bytes:
        """The bytes of a list of pictures as one piece, see :func:`parted`."""
        found = map(self.held, values or ())
        return b"".join(len(one).to_bytes(_LENGTH, "little") + one for one in found)


def parted(piece: bytes) -> list[bytes]:
    """The pictures of a piece."""
    found, at = [], 0
    while at < len(piece):
        begin = at + _LENGTH
        at = begin + int.from_bytes(piece[at:begin], "little")
        found.append(piece[begin:at])
    return found
