"""Rows of Parquet and Arrow files with any columns, one by one, so that no picture waits beside another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....adapters.extras import missing
from ..columns import class_names
from .rows import BadRow, Row

MOST_GROUP = 4 * 2**30  # bytes of a group of rows as it is unpacked


def arrow_names(path: Path, name: str) -> list[str]:
    """The columns of a Parquet or Arrow file, which errors call ``name``.

    Raises:
        UsageError: pyarrow is not installed.
        BadRow: it is neither.
    """
    return list(_opened(path, name)[0].names)


def arrow_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of such a file; classes that ``datasets`` stored as numbers are told by their names.

    Raises:
        UsageError: pyarrow is not installed.
        BadRow: the file is neither, or a group of its rows is too large.
    """
    schema, batches = _opened(path, name)
    names, number = class_names(schema), 0
    try:
        for batch in batches:
            for at in range(batch.num_rows):
                number += 1
                try:
                    (values,) = batch.slice(at, 1).to_pylist()
                except ValueError as error:  # text that is not UTF-8
                    yield Row(name, f"row {number}", {}, str(error))
                    continue
                for column, known in names.items():
                    if isinstance(code := values.get(column), int) and 0 <= code < len(known):
                        values[column] = known[code]
                yield Row(name, f"row {number}", values, key=f"{path.stem}/{number}")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise BadRow(name, f"after row {number}", "", f"cannot be read ({error})", "Write the file again.") from None


def _opened(path: Path, name: str) -> tuple[Any, Iterator[Any]]:
    """The schema, and batches of few rows."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing("pyarrow", f"{path}") from None
    try:
        if path.suffix.lower() == ".parquet":
            file = parquet.ParquetFile(path)
            for group in range(file.metadata.num_row_groups):
                if file.metadata.row_group(group).total_byte_size > MOST_GROUP:
                    raise BadRow(name, "", "", f"rows unpack to over {MOST_GROUP >> 30} GiB a group", _SMALLER)
            return _distinct(file.schema_arrow, name), file.iter_batches(1)
        mapped = pa.memory_map(str(path))
        head = mapped.read(6)
        mapped.seek(0)
        opened = pa.ipc.open_file(mapped) if head == b"ARROW1" else pa.ipc.open_stream(mapped)
        return _distinct(opened.schema, name), iter(opened.read_all().to_batches())
    except (OSError, ValueError) as error:
        raise BadRow(name, "", "", f"is neither Parquet nor Arrow ({error})", "Write the file again.") from None


def _distinct(schema: Any, name: str) -> Any:
    """The schema, whose columns have names of their own."""
    if len(set(schema.names)) < len(schema.names):
        raise BadRow(name, "", "", f"two columns have one name: {', '.join(schema.names)}", "Rename one.")
    return schema


_SMALLER = "Write it in smaller groups (row_group_size)."
