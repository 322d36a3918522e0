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
from typing import Any, cast

from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.extras import missing
from .picture_columns import BYTES, PATH, PictureColumn, parted
from .shards import FIELDS, IMAGE, IMAGES, MESSAGES, NEEDED, OPTIONAL, REQUIRED, Content, Shard
from .spool import Groups

_ROWS = 1024  # of a batch without pictures
_PICTURES = 16  # of a batch of pictures
_PROMPT = "prompt"


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
    def _image(self) -> PictureColumn | None:
        """The column of pictures; None if there is none."""
        return self._column(IMAGE, many=False)

    @cached_property
    def _images(self) -> PictureColumn | None:
        """The column of lists of pictures; None if there is none."""
        return self._column(IMAGES, many=True)

    def _column(self, name: str, *, many: bool) -> PictureColumn | None:
        """A column of pictures.

        Raises:
            UsageError: it holds something else.
        """
        try:
            return PictureColumn.of(self._checked, name, many=many)
        except ValueError as error:
            raise UsageError(
                f"{self.path}: {error}.", "It holds paths, the bytes of files, or structs of bytes and path."
            ) from None

    @cached_property
    def _checked(self) -> Any:
        """The schema.

        Raises:
            UsageError: the columns are not those of records.
        """
        schema = self._schema()
        names = set(schema.names)
        unknown, lacking = names - set(FIELDS), set(REQUIRED) - names - self._given.keys()
        lacking -= {_PROMPT} if MESSAGES in names else set()
        if unknown or lacking or len(names) != len(schema.names):
            said = f"lacks {', '.join(sorted(lacking))}" if lacking else f"has {', '.join(sorted(unknown)) or 'twins'}"
            raise UsageError(
                f"{self.path} has the columns {', '.join(schema.names)}, and so {said}.",
                f"Name the columns as records do: {NEEDED}, and any of {OPTIONAL}.",
            )
        return schema

    @cached_property
    def _texts(self) -> list[str]:
        """The columns that hold no pictures."""
        return [name for name in self._checked.names if name not in (IMAGE, IMAGES)]

    @property
    def packed(self) -> bool:
        """Whether pictures lie in the file."""
        return any(column is not None and column.packed for column in (self._image, self._images))

    def _unnamed(self, row: int) -> str:
        """What a record calls a picture that has no path; rows count from 1."""
        return f"{self.path.name}:{row}"

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
        self._image, self._images  # noqa: B018  the columns are checked now

    def rows(self) -> Iterator[tuple[int, Content]]:
        file, first = self._open(), 1
        for group, count in enumerate(self._counts):
            held = zip(self._held(file, group), self._held_lists(file, group), strict=True)
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=self._texts):
                for (number, row), shown in zip(self._contents(batch, first), held, strict=False):
                    yield number, _showing(row, shown)
                first += batch.num_rows
            assert first == self._ends[group] + 1, count

    def _held(self, file: Any, group: int) -> Iterator[str | None]:
        """What a record says of its picture, row by row: its path or another name; None without one."""
        column = self._image
        if column is None or column.empty:
            yield from (None for _ in range(self._counts[group]))
            return
        rows = range(self._ends[group] - self._counts[group], self._ends[group])
        if column.struct:
            packed = self._has_bytes(file, group)
            values = self._values(file, group, f"{IMAGE}.{PATH}")
            for row, value in zip(rows, values, strict=True):
                yield None if value is None else value[PATH] or (self._unnamed(row + 1) if packed else None)
        else:
            for row, value in zip(rows, self._values(file, group, IMAGE), strict=True):
                yield column.named(value, self._unnamed(row + 1))

    def _held_lists(self, file: Any, group: int) -> Iterator[list[str] | None]:
        """The same of its list of pictures."""
        column = self._images
        if column is None or column.empty:
            yield from (None for _ in range(self._counts[group]))
            return
        first = self._ends[group] - self._counts[group] + 1
        for row, values in enumerate(self._values(file, group, IMAGES), first):
            yield column.names(values, self._unnamed(row))

    @staticmethod
    def _values(file: Any, group: int, column: str) -> Iterator[Any]:
        for batch in file.iter_batches(_PICTURES, row_groups=[group], columns=[column]):
            yield from batch.column(0).to_pylist()

    def _has_bytes(self, file: Any, group: int) -> bool:
        """Whether some struct of the group holds bytes, as far as the file's statistics tell."""
        about = file.metadata.row_group(group)
        for at in range(about.num_columns):
            column = about.column(at)
            if column.path_in_schema == f"{IMAGE}.{BYTES}" and column.statistics is not None:
                return bool(column.statistics.null_count < about.num_rows)
        return True

    def picture(self, number: int, at: int = 0) -> bytes | None:
        group = bisect_right(self._ends, number - 1)
        row = number - 1 - (self._ends[group] - self._counts[group])
        if self._image is not None and self._image.packed and (held := self._kept.piece((IMAGE, group), row)):
            return held
        if self._images is not None and self._images.packed:
            return next(iter(parted(self._kept.piece((IMAGES, group), row))[at:]), b"") or None
        return None

    def _group(self, place: Hashable) -> Iterator[bytes]:
        name, group = cast(tuple[str, int], place)
        file, column = self._open(), self._image if name == IMAGE else self._images
        assert column is not None  # of which something is asked
        within = f"{IMAGE}.{BYTES}" if column.struct and not column.many else name
        for value in self._values(file, group, within):
            if column.many:
                yield column.joined(value)
            else:
                yield (value[BYTES] if isinstance(value, dict) else value) or b""

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
        self._image, self._images  # noqa: B018  the columns are checked now

    def rows(self) -> Iterator[tuple[int, Content]]:
        first = 1
        for batch in self._batches:
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                for number, row in self._contents(part.select(self._texts), first):
                    yield number, _showing(row, self._said(part, number - first, number))
                first += part.num_rows

    def _said(self, batch: Any, at: int, number: int) -> tuple[str | None, list[str] | None]:
        """What a record says of its picture and of its list of them."""
        one, many, unnamed = self._image, self._images, self._unnamed(number)
        return (
            None if one is None else one.named(_without_bytes(one, batch.column(IMAGE)[at]), unnamed),
            None if many is None else many.names(_listed(many, batch.column(IMAGES)[at]), unnamed),
        )

    def picture(self, number: int, at: int = 0) -> bytes | None:
        batch = self._batches[(place := bisect_right(self._ends, number - 1))]
        row = number - 1 - (self._ends[place] - batch.num_rows)
        if self._image is not None and (held := self._image.held(batch.column(IMAGE)[row].as_py())):
            return held
        if self._images is not None and self._images.packed:
            values = (batch.column(IMAGES)[row].as_py() or [])[at : at + 1]
            return next(map(self._images.held, values), b"") or None
        return None

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


def _without_bytes(column: PictureColumn, value: Any) -> Any:
    """A value of a mapped file whose bytes, which are not read, are empty."""
    if not value.is_valid or not column.packed:
        return value.as_py()
    return {BYTES: b"" if value[BYTES].is_valid else None, PATH: value[PATH].as_py()} if column.struct else b""


def _listed(column: PictureColumn, value: Any) -> list[Any]:
    return [_without_bytes(column, one) for one in value.values] if value.is_valid else []


def _showing(row: Content, shown: tuple[str | None, list[str] | None]) -> Content:
    """A row with what it says of its picture and its list of them."""
    if not isinstance(row, dict):
        return row
    return row | {name: value for name, value in zip((IMAGE, IMAGES), shown, strict=True) if value is not None}
