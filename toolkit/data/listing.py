"""Which files of records a path stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...adapters.errors import InvalidArtifact, UsageError
from .columns import ArrowShard, ParquetShard
from .shards import JsonLines, Shard

SUFFIXES = (".jsonl", ".parquet", ".arrow")
_DATASET, _DATASETS = "state.json", "dataset_dict.json"  # of datasets.save_to_disk
_SPLITS = ("fit", "calibration", "test")


def shards_of(path: Path) -> list[Shard]:
    """The files of records at ``path``, in the order in which they are read.

    Args:
        path: a JSONL, Parquet or Arrow file; a folder of them, read in the order of their names; or a folder that
            ``datasets`` saved. In a folder of several data sets, those named after a split need no column for it.

    Raises:
        UsageError: there are none, or a library is missing that reads them, or columns are not those of records.
        InvalidArtifact: a file is not of its kind.
    """
    if path.is_file():
        return [_shard(path)]
    if is_saved(path):
        named = (path / _DATASETS).is_file()
        saved = dataset_files(path).items()
        return [_shard(file, {"split": split} if named and split in _SPLITS else None) for file, split in saved]
    return [_shard(file) for file in files_of(path)]


def is_saved(path: Path) -> bool:
    """Whether this is a folder that ``datasets`` saved."""
    return (path / _DATASETS).is_file() or (path / _DATASET).is_file()


def files_of(path: Path) -> list[Path]:
    """What :func:`shards_of` reads one by one: files, or the folder itself where ``datasets`` saved it.

    Raises:
        UsageError: there are none.
    """
    if path.is_file() or is_saved(path):
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UsageError(
            f"There are no records at {path}.",
            f"Pass a file or a folder of files that end in {', '.join(SUFFIXES)}, or a folder that `datasets` saved.",
        )
    return files


def _shard(path: Path, given: dict[str, Any] | None = None) -> Shard:
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return (ParquetShard if suffix == ".parquet" else ArrowShard)(path, given)
    return JsonLines(path)


def dataset_files(path: Path) -> dict[Path, str]:
    """The data files of a folder that ``datasets`` saved, each with the name of the folder it lies in; else none.

    Raises:
        InvalidArtifact: it names files that are not in it.
    """
    if (path / _DATASETS).is_file():
        names = [_inside(path, name) for name in _listed(path / _DATASETS, "splits")]
        return {file: name for name in names for file in _files(path / name)}
    return dict.fromkeys(_files(path), path.name) if (path / _DATASET).is_file() else {}


def _files(folder: Path) -> list[Path]:
    """The data files of one data set, as ``datasets`` lists them."""
    found = _listed(folder / _DATASET, "_data_files")
    names = [item.get("filename") if isinstance(item, dict) else None for item in found]
    return [folder / _inside(folder, name) for name in names]


def _listed(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise InvalidArtifact(f"{path} names no {key.strip('_')}.", "Save the data set again with save_to_disk.")
    return found


def _inside(folder: Path, name: Any) -> str:
    """A name that stays in the folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or not (folder / name).exists():
        raise InvalidArtifact(
            f"{folder} names {name!r}, which is not in it.", "Save the data set again with save_to_disk."
        )
    return name
