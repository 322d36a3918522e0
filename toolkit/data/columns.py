"""Records in columns: Parquet files, and the Arrow files of a ``datasets`` folder.

Rows come without their pictures, which are read when they are asked for. A picture is its file's bytes, a struct
``{bytes, path}`` as ``datasets`` writes it, or a path.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Hashable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.extras import missing
from .shards import FIELDS, IMAGE, REQUIRED, Content, Shard
from .spool import Groups

_ROWS = 1024  # of a batch without pictures
_PICTURES = 16  # of a batch of pictures
_BYTES, _PATH = "bytes", "path"


class _Columns(Shard):
    """What both formats share."""

    def __init__(self, path: Path, given: dict[str, Any] | None = None) -> None:
        super().__init__(path)
        self._given = given or {}

    def place(self, number: int) -> str:
        return f"{self.path}, row {number}"

    def _schema(self) -> Any:
        raise NotImplementedError

    @cached_property
    def _image(self) -> Any:
        """The type of the column of pictures; None if there is none."""
        return self._checked.field(IMAGE).type if IMAGE in self._checked.names else None

    @cached_property
    def _checked(self) -> Any:
        """The schema.

        Raises:
            UsageError: the columns are not those of records.
        """
        schema = self._schema()
        names = set(schema.names)
        unknown, lacking = names - set(FIELDS), set(REQUIRED) - names - self._given.keys()
        if unknown or lacking or len(names) != len(schema.names):
            said = f"lacks {', '.join(sorted(lacking))}" if lacking else f"has {', '.join(sorted(unknown)) or 'twins'}"
            raise UsageError(
                f"{self.path} has the columns {', '.join(schema.names)}, and so {said}.",
                f"Name the columns as records do: {', '.join(REQUIRED)}, and any of "
                f"{', '.join(name for name in FIELDS if name not in REQUIRED)}.",
            )
        if IMAGE in names and not self._pictured(schema.field(IMAGE).type):
            raise UsageError(
                f"{self.path}: the column {IMAGE} is {schema.field(IMAGE).type}, which is no picture.",
                "It holds paths, the bytes of files, or structs of bytes and path.",
            )
        return schema

    @property
    def packed(self) -> bool:
        """Whether pictures lie in the file."""
        import pyarrow.types as types

        return self._image is not None and bool(types.is_struct(self._image) or _is_binary(self._image))

    @staticmethod
    def _pictured(kind: Any) -> bool:
        import pyarrow.types as types

        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            return {field.name for field in kind} == {_BYTES, _PATH}
        return bool(_is_binary(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Names of the classes by column, where ``datasets`` stored their numbers."""
        return class_names(self._checked)

    def _contents(self, batch: Any, first: int) -> Iterator[tuple[int, Content]]:
        """Rows of a batch that has all columns but the pictures, numbered from ``first``."""
        try:
            rows: list[Any] = batch.to_pylist()
        except ValueError:  # text that is not UTF-8; row by row tells where
            rows = [self._alone(batch, at) for at in range(batch.num_rows)]
        for number, row in enumerate(rows, start=first):
            if isinstance(row, dict):
                row = {**self._given, **{name: value for name, value in row.items() if value is not None}}
                for name, names in self._names.items():
                    if isinstance(code := row.get(name), int) and 0 <= code < len(names):
                        row[name] = names[code]
            yield number, row

    def _alone(self, batch: Any, at: int) -> Any:
        try:
            return batch.slice(at, 1).to_pylist()[0]
        except ValueError as error:
            return str(error)


class ParquetShard(_Columns):
    """A Parquet file. A group of rows whose pictures are asked for is kept on disk, unpacked (:class:`.spool.Groups`).

    Raises:
        UsageError: pyarrow is not installed, or the columns are not those of records.
        InvalidArtifact: the file is not Parquet.
    """

    def __init__(self, path: Path, given: dict[str, Any] | None = None) -> None:
        super().__init__(path, given)
        groups = self._open().metadata
        self._counts = [groups.row_group(at).num_rows for at in range(groups.num_row_groups)]
        self._ends = list(accumulate(self._counts))
        self._kept = Groups(self._group)
        self._image  # noqa: B018  the columns are checked now

    def rows(self) -> Iterator[tuple[int, Content]]:
        file, first = self._open(), 1
        texts = [name for name in self._checked.names if name != IMAGE]
        for group, count in enumerate(self._counts):
            held = self._held(file, group)
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=texts):
                for number, row in self._contents(batch, first):
                    if isinstance(row, dict) and (image := next(held)) is not None:
                        row[IMAGE] = image
                    elif not isinstance(row, dict):
                        next(held)
                    yield number, row
                first += batch.num_rows
            assert first == self._ends[group] + 1, count

    def _held(self, file: Any, group: int) -> Iterator[str | None]:
        """What a record says of its picture, row by row: its path or another name; None without one."""
        import pyarrow.types as types

        if self._image is None or types.is_null(self._image):
            yield from (None for _ in range(self._counts[group]))
            return
        rows = range(self._ends[group] - self._counts[group], self._ends[group])
        if types.is_struct(self._image):
            packed = self._has_bytes(file, group)
            values = self._values(file, group, f"{IMAGE}.{_PATH}")
            for row, value in zip(rows, values, strict=True):
                unnamed = f"{self.path.name}:{row + 1}" if packed else None
                yield None if value is None else value[_PATH] or unnamed
        elif _is_binary(self._image):
            for row, value in zip(rows, self._values(file, group, IMAGE), strict=True):
                yield None if value is None else f"{self.path.name}:{row + 1}"
        else:
            yield from self._values(file, group, IMAGE)

    @staticmethod
    def _values(file: Any, group: int, column: str) -> Iterator[Any]:
        for batch in file.iter_batches(_PICTURES, row_groups=[group], columns=[column]):
            yield from batch.column(0).to_pylist()

    def _has_bytes(self, file: Any, group: int) -> bool:
        """Whether some struct of the group holds bytes, as far as the file's statistics tell."""
        about = file.metadata.row_group(group)
        for at in range(about.num_columns):
            column = about.column(at)
            if column.path_in_schema == f"{IMAGE}.{_BYTES}" and column.statistics is not None:
                return bool(column.statistics.null_count < about.num_rows)
        return True

    def picture(self, number: int) -> bytes | None:
        if not self.packed:
            return None
        group = bisect_right(self._ends, number - 1)
        return self._kept.piece(group, number - 1 - (self._ends[group] - self._counts[group])) or None

    def _group(self, group: Hashable) -> Iterator[bytes]:
        import pyarrow.types as types

        file = self._open()
        column = f"{IMAGE}.{_BYTES}" if types.is_struct(self._image) else IMAGE
        for value in self._values(file, group, column):  # type: ignore[arg-type]
            yield (value[_BYTES] if isinstance(value, dict) else value) or b""

    def _schema(self) -> Any:
        return self._open().schema_arrow

    def _open(self) -> Any:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise missing("pyarrow", f"{self.path} is Parquet, which") from None
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise InvalidArtifact(
                f"{self.path} cannot be read as Parquet ({error}).", "Write the file again."
            ) from None


class ArrowShard(_Columns):
    """An Arrow file, stream or not, which is mapped into memory.

    Raises:
        UsageError: pyarrow is not installed, or the columns are not those of records.
        InvalidArtifact: the file is not Arrow.
    """

    def __init__(self, path: Path, given: dict[str, Any] | None = None) -> None:
        super().__init__(path, given)
        self._batches = self._table().to_batches()
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self._image  # noqa: B018  the columns are checked now

    def rows(self) -> Iterator[tuple[int, Content]]:
        texts, first = [name for name in self._checked.names if name != IMAGE], 1
        for batch in self._batches:
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                for number, row in self._contents(part.select(texts), first):
                    if isinstance(row, dict) and (image := self._said(part, number - first, number)) is not None:
                        row[IMAGE] = image
                    yield number, row
                first += part.num_rows

    def _said(self, batch: Any, at: int, number: int) -> str | None:
        import pyarrow.types as types

        if self._image is None or not (value := batch.column(IMAGE)[at]).is_valid:
            return None
        name = f"{self.path.name}:{number}"
        if types.is_struct(self._image):
            return value[_PATH].as_py() or (name if value[_BYTES].is_valid else None)
        return name if _is_binary(self._image) else value.as_py()

    def picture(self, number: int) -> bytes | None:
        import pyarrow.types as types

        if self._image is None:
            return None
        at = bisect_right(self._ends, number - 1)
        batch = self._batches[at]
        value = batch.column(IMAGE)[number - 1 - (self._ends[at] - batch.num_rows)]
        if types.is_struct(self._image):
            value = value[_BYTES]
        elif not _is_binary(self._image):
            return None
        found: bytes | None = value.as_py()
        return found

    def _schema(self) -> Any:
        return self._batches[0].schema if self._batches else self._table().schema

    def _table(self) -> Any:
        try:
            import pyarrow as pa
        except ImportError:
            raise missing("pyarrow", f"{self.path} is Arrow, which") from None
        try:
            mapped = pa.memory_map(str(self.path))
            head = mapped.read(6)
            mapped.seek(0)
            opened = pa.ipc.open_file(mapped) if head == b"ARROW1" else pa.ipc.open_stream(mapped)
            return opened.read_all()
        except (OSError, ValueError) as error:
            raise InvalidArtifact(f"{self.path} cannot be read as Arrow ({error}).", "Write the file again.") from None


def class_names(schema: Any) -> dict[str, list[str]]:
    """Names of the classes by column, where ``datasets`` stored their numbers."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
        return {name: [*kind["names"]] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))
