"""What a user may write for a model or for records: a path, or a part of the bundled reference VLM."""

from __future__ import annotations

from pathlib import Path

from ...adapters.artifact.files import EXPORT_MANIFEST
from ...adapters.artifact.hub import located
from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean
from ..reference import records_path, reference_path

PREFIX = "reference"
_BUNDLED = (f"{PREFIX}:mild", f"{PREFIX}:severe")
_EMPTY = "an empty path"


def model_path(text: Path | str) -> Path:
    """A checkpoint folder, an id ``org/name`` in the local cache, or ``reference:mild`` / ``reference:severe``.

    Raises:
        UsageError: none of them.
    """
    prefix, _, name = str(text).partition(":")
    if prefix == PREFIX and name in ("mild", "severe"):
        return reference_path(name)  # type: ignore[arg-type]
    path = located(text)
    if not str(text) or not path.is_dir():
        hint = did_you_mean(str(text), _BUNDLED)
        raise UsageError(
            f"There is no model folder at {text or _EMPTY}.",
            f"{hint} Pass a checkpoint folder, the id of one in the cache of the Hugging Face Hub, or reference:mild "
            "or reference:severe for the bundled model organism.".strip(),
        )
    return path


def is_checkpoint(text: Path | str) -> bool:
    """Whether this names a checkpoint: a bundled one, or a folder with weights of its own beside a configuration."""
    path = located(text)
    stored = (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    return stored or str(text).startswith(f"{PREFIX}:")


def is_export(folder: Path) -> bool:
    """Whether this is a folder that ``safetykit export`` wrote."""
    return (located(folder) / EXPORT_MANIFEST).is_file()


def is_address(text: Path | str) -> bool:
    """Whether this is the address of a server."""
    return str(text).startswith(("http://", "https://"))


def data_path(text: Path | str) -> Path:
    """A JSONL file or folder of records, or ``reference`` for the bundled ones.

    Raises:
        UsageError: neither.
    """
    if str(text) == PREFIX:
        return records_path("fit").parent
    path = Path(text)
    if not str(text) or not path.exists():
        hint = did_you_mean(str(text), [PREFIX])
        raise UsageError(
            f"There are no records at {text or _EMPTY}.",
            f"{hint} Pass a JSONL file or a folder of them, or `reference` for the bundled ones.".strip(),
        )
    return path
