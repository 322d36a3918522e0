"""Where an index's texts come from: JSON lines, Parquet, or a folder of pictures with their captions.

Sources are read twice, once to count and once to embed, and never held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.extras import missing
from ..data.captions import captions_path

KEYS = ("caption", "text")
METADATA = "metadata.jsonl"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_ROWS = 4096

Texts = Callable[[], Iterator[str]]


def open_texts(source: str) -> Texts:
    """How to stream the texts of ``source``: each call starts anew.

    Args:
        source: a JSONL file whose lines have ``caption`` or ``text``; a Parquet file with such a column; a folder
            with ``metadata.jsonl``, or of pictures beside text files of the same name; or ``reference``.

    Raises:
        UsageError: there is nothing of the kind, or Parquet cannot be read here.
    """
    path = Path(source)
    if path.is_dir():
        if (path / METADATA).is_file():
            return lambda: _jsonl(path / METADATA)
        pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
        if not pictures:
            raise UsageError(
                f"{path} holds no pictures.", f"It needs pictures with text files of the same name, or {METADATA}."
            )
        return lambda: _beside(pictures)
    if path.suffix.lower() == ".parquet" and path.is_file():
        _parquet_column(path)
        return lambda: _parquet(path)
    path = captions_path(source)
    return lambda: _jsonl(path)


def _jsonl(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise InvalidArtifact(f"{path}:{number} is not JSON.", "Write one JSON object a line.") from None
            found = [value[key] for key in KEYS if key in value] if isinstance(value, dict) else []
            if not found:
                raise InvalidArtifact(f"{path}:{number} has no caption.", f"Give it a key {' or '.join(KEYS)}.")
            yield _checked(found[0], f"{path}:{number}")


def _beside(pictures: list[Path]) -> Iterator[str]:
    for picture in pictures:
        file = picture.with_suffix(".txt")
        if not file.is_file():
            raise UsageError(f"{picture} has no caption.", f"Write it into {file.name}.")
        yield _checked(file.read_bytes().decode(errors="surrogateescape").strip(), str(file))


def _parquet_column(path: Path) -> str:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing("pyarrow", f"{path} is Parquet, which") from None
    try:
        names = parquet.ParquetFile(path).schema_arrow.names
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InvalidArtifact(f"{path} cannot be read as Parquet ({error}).", "Write the file again.") from None
    for name in KEYS:
        if name in names:
            return name
    raise UsageError(f"{path} has no column {' or '.join(KEYS)}.", f"It has {', '.join(names)}; rename one.")


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet as parquet

    column, number = _parquet_column(path), 0
    for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            number += 1
            yield _checked(value, f"{path}, row {number}")


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidArtifact(f"{where}: its caption is {text!r}, not a text.", "Correct it or take it out.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArtifact(f"{where} is not valid Unicode.", "Write it as UTF-8.") from None
    return text
