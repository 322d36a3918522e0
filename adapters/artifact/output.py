"""Writing so that an output appears whole or not at all, and replaces nothing but what safetykit wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue

from ..errors import InvalidArtifact, UsageError
from .files import EXPORT_MANIFEST, MANIFEST, flush, read_inside, unnamed_files
from .held import Held, held
from .manifest import canonical_json, is_sealed, sealed

_MARK_LIMIT = 16 * 2**20  # bytes of a file by which a folder is known

_Mark = Callable[[bytes, Any], bool]  # a file's bytes and the JSON object in them → whether safetykit wrote it
_MADE_BY = ".safetykit.json"  # in folders whose form is that of another library


def _lora(data: bytes, body: Any) -> bool:
    """PEFT names the base and ends without a newline; what safetykit wrote does neither."""
    return "peft_type" in body and body.get("base_model_name_or_path", "") is None and data == canonical_json(body)


def _alignment(data: bytes, body: Any) -> bool:
    return set(body) == {"identity", "step", "curve"} and data == canonical_json(body)


# By one of these a folder is known as one of ours, which `--overwrite` may replace: of adapters and indexes, exports,
# channel maps, LoRA adapters, alignments that go on where they were, and checkpoints.
_MADE: Mapping[str, _Mark] = MappingProxyType(
    {
        MANIFEST: is_sealed,
        EXPORT_MANIFEST: is_sealed,
        "channel_map.json": is_sealed,
        "adapter_config.json": _lora,
        "checkpoint.json": _alignment,
        _MADE_BY: is_sealed,
    }
)


def mark_made(folder: Path, *, listing: bool = False) -> None:
    """Say in a hidden file that safetykit wrote a folder that cannot be told from those of another library.

    Args:
        listing: name the files in it, too; then ``--overwrite`` refuses a folder that also holds others.
    """
    files: dict[str, JsonValue] = {"files": [*unnamed_files(folder, ())]} if listing else {}
    (folder / _MADE_BY).write_bytes(sealed({"made_by": "safetykit", **files}))


def require_free(target: Path, *, overwrite: bool = False, inputs: Iterable[Path | str | None] = ()) -> None:
    """Refuse an output folder that is taken, being written or cannot be written; worth calling before long work.

    Args:
        inputs: what is read to make the output, and must survive it; what is no path that exists is passed over.

    Raises:
        UsageError: ``target`` is a file, or a folder with content and ``overwrite`` is off; or holds an input, or
            nothing that safetykit wrote; or another process writes it.
    """
    with claimed(target, overwrite=overwrite, inputs=inputs):
        pass


@contextmanager
def claimed(
    target: Path,
    *,
    overwrite: bool = False,
    inputs: Iterable[Path | str | None] = (),
    spent: Iterable[Path] = (),
) -> Iterator[Held]:
    """Hold an output folder for work that ends with :func:`atomic_folder` within the block.

    Args:
        spent: see :class:`~safetykit.adapters.artifact.held.Held`.

    Raises:
        UsageError: as :func:`require_free`.
        OutputFailed: the system would not write.
    """
    with held(target, spent=spent, anew=overwrite) as output:
        _require_free(target, overwrite, inputs)
        yield output


@contextmanager
def claimed_file(
    target: Path,
    *,
    overwrite: bool = False,
    keys: Collection[str] = (),
    begins: bytes = b"",
    spent: Iterable[Path] = (),
) -> Iterator[Held]:
    """Hold an output file for work that ends with :func:`write_output` within the block.

    Args:
        keys: of the JSON object by which a file that may be overwritten is known.
        begins: by which it is known instead, where it is no JSON.

    Raises:
        UsageError: ``target`` is a folder, or there and ``overwrite`` is off, or nothing that safetykit wrote; or
            another process writes it.
        OutputFailed: the system would not write.
    """
    with held(target, spent=spent, anew=overwrite) as output:
        _require_free_file(target, overwrite, keys, begins)
        yield output


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` only when the block ends without an error.

    On any error the folder is removed and ``target`` stays as it was; if the process is killed, the next one that
    writes ``target`` removes it. A folder that is replaced is so in one step, where the system has one.

    Raises:
        UsageError: as :func:`require_free`.
        OutputFailed: the system would not write.
    """
    with claimed(target, overwrite=overwrite) as output:
        output.new.mkdir()
        yield output.new
        for path in output.new.rglob("*"):
            if path.is_file():
                flush(path)
        flush(output.new)
        _require_free(target, overwrite, ())  # of what others may have put there meanwhile
        output.commit()


def write_output(target: Path, data: bytes) -> None:
    """Write an output file, whole or not at all; one process at a time.

    Raises:
        UsageError: another process writes it, or nothing can be written there.
        OutputFailed: the system would not write.
    """
    with held(target) as output:
        if output.target.is_dir():
            raise UsageError(f"{target} is a folder, not a file.", "Choose another output file.")
        output.new.write_bytes(data)
        flush(output.new)
        output.commit()


def _require_free(target: Path, overwrite: bool, inputs: Iterable[Path | str | None]) -> None:
    if target.is_file():
        raise UsageError(f"{target} is a file, not a folder.", "Choose another output folder.")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} already exists and is not empty.", "Choose another folder or pass --overwrite.")
    for path in (Path(one) for one in inputs if one):
        if path.exists() and target.resolve() in (found := path.resolve(), *found.parents):
            raise UsageError(f"{target} holds {path}, which is read to make it.", "Choose another output folder.")
    if not _is_made(target) and not _is_demo(target):
        some = min(target.iterdir()).name
        raise UsageError(
            f"{target} was not written by safetykit: it holds {some}.",
            "Choose another folder; --overwrite replaces adapters, exports, indexes, maps and records only.",
        )
    if strange := _strangers(target):
        raise UsageError(
            f"{target} also holds what safetykit did not write: {', '.join(strange)}.",
            "Move it out of the folder, or choose another one.",
        )


def _strangers(folder: Path) -> list[str]:
    """Files of an adapter, an export, an index or records that its manifest or mark does not name."""
    for name in (MANIFEST, EXPORT_MANIFEST, _MADE_BY):
        try:
            files = json.loads(read_inside(folder, name, _MARK_LIMIT))["files"]
        except (InvalidArtifact, OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(files, (dict, list)):
            return unnamed_files(folder, {name, *files})
    return []


def _require_free_file(target: Path, overwrite: bool, keys: Collection[str], begins: bytes) -> None:
    if not target.exists():
        return
    if target.is_dir():
        raise UsageError(f"{target} is a folder, not a file.", "Choose another output file.")
    if not overwrite:
        raise UsageError(f"{target} already exists.", "Choose another file or pass --overwrite.")
    try:
        data = target.read_bytes()
        body = None if begins else json.loads(data)
    except (OSError, ValueError, RecursionError):
        data, body = b"", None
    known = isinstance(body, dict) and body.keys() >= set(keys)
    if not (data.startswith(begins) if begins else known):
        raise UsageError(
            f"{target} was not written by this command.", "Choose another file; --overwrite replaces its results only."
        )


def _is_demo(folder: Path) -> bool:
    return _is_made(folder / "adapter") and _is_made(folder / "export")


def _is_made(folder: Path) -> bool:
    return any(_bears(folder, name, mark) for name, mark in _MADE.items())


def _bears(folder: Path, name: str, mark: _Mark) -> bool:
    """Whether a folder has the file ``name`` as safetykit writes it."""
    try:
        data = read_inside(folder, name, _MARK_LIMIT)
        body = json.loads(data)
        return isinstance(body, dict) and mark(data, body)
    except (InvalidArtifact, OSError, ValueError, RecursionError):
        return False
