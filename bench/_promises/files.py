"""Files: corruption, names that lead elsewhere, files that nobody named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.files import EXPORT_MANIFEST, MANIFEST
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.store import load_adapter
from safetykit.adapters.errors import InvalidArtifact
from safetykit.export.commands.verification import verify_folder
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM

from .row import Figure, Place, Row, Tally

_DRAWN = 500  # changed bytes of an export
BAD_NAMES = (
    *("..", ".", "", " ", "../x", "../../x", "a/../../x", "./x", "/etc/passwd", "//server/share", "a//b", "a/"),
    *("..\\x", "\\x", "a\\b", "C:\\x", "C:x", "c:/x", "\\\\server\\share", "file:///etc/passwd", "~/x", "~root"),
    *("a\0b", "a\nb", "a\rb", "a\tb", "a b", "-rf", "$HOME", "%2e%2e%2fx", ".hidden", "a.", "x" * 300),
    *("con", "NUL", "aux.json", "COM1.txt", "README.MD", "readme.md", "ａ.json"),
)
PLANTED = (
    *("chat_template.json", "added_tokens.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("additional_chat_templates/tool.jinja", "preprocessor_config.json", "tokenizer.model", "adapter_config.json"),
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling.py", "onnx/decoder.onnx"),
    *("decoder.onnx.data.1", "custom_ops.so", "__pycache__/run_ort.cpython-311.pyc", "notes.txt", "manifest.json"),
    "genai_config.json",
)


def corruption(place: Place) -> Figure:
    """Every byte of an adapter with one bit flipped, every length shorter; and bytes drawn from an export's files."""
    tally, step = Tally(), place.some(1, 97)
    with place.scratch("corrupt") as work:
        folder = shutil.copytree(place.guard, work / "adapter")
        for path in sorted(folder.iterdir()):
            whole = path.read_bytes()
            for at in range(0, len(whole), step):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
                tally.refused(f"{path.name} byte {at}", lambda: load_adapter(folder), InvalidArtifact, path.name)
                path.write_bytes(whole[:at])
                tally.refused(f"{path.name} cut at {at}", lambda: load_adapter(folder), InvalidArtifact, path.name)
            path.write_bytes(whole)
        tally.accepted("the adapter as it was", lambda: load_adapter(folder))
        in_adapter = tally.total
        folder, drawn = shutil.copytree(place.export, work / "export"), random.Random(0)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
        for number in range(place.some(_DRAWN, 10)):
            path = files[number % len(files)]
            at = drawn.randrange(path.stat().st_size)
            with _flipped(path, at):
                tally.refused(f"{path.name} byte {at}", lambda: read_manifest(folder), InvalidArtifact, path.name)
        tally.accepted("the export as it was", lambda: read_manifest(folder))
    return tally.figure("refused with the file named", {"adapter": in_adapter, "export": tally.total - in_adapter})


@contextmanager
def _flipped(path: Path, at: int) -> Iterator[None]:
    """One bit of a byte flipped, in place, and back."""

    def flip() -> None:
        with open(path, "r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << at % 8]))

    flip()
    try:
        yield
    finally:
        flip()


def bad_names(place: Place) -> Figure:
    """Names that lead elsewhere or mean two things, sealed into manifests; and links in the place of files."""
    tally = Tally()
    with place.scratch("names") as work:
        adapter, export = shutil.copytree(place.guard, work / "a"), shutil.copytree(place.export, work / "e")
        for folder, manifest, load in (
            (adapter, MANIFEST, lambda: load_adapter(adapter)),
            (export, EXPORT_MANIFEST, lambda: read_manifest(export)),
        ):
            whole = (folder / manifest).read_bytes()
            for name in BAD_NAMES:
                body = json.loads(whole)
                body["files"][name] = _plant(folder, name)
                seal(folder / manifest, body)
                tally.refused(f"{manifest} names {name!r}", load, InvalidArtifact)
                _remove(folder, name)
            (folder / manifest).write_bytes(whole)
            tally.accepted(f"{manifest} as it was", load)
        for folder, load in ((adapter, lambda: load_adapter(adapter)), (export, lambda: read_manifest(export))):
            for name in ("README.md", "tokenizer.json", "adapter.safetensors", "decoder.onnx"):
                if (folder / name).is_file():
                    os.replace(folder / name, work / name)
                    (folder / name).symlink_to(work / name)
                    tally.refused(f"{name} is a link", load, InvalidArtifact, name)
                    (folder / name).unlink()
                    os.replace(work / name, folder / name)
            other = folder.parent / f"{folder.name}-link"
            shutil.copytree(folder, other / "real")
            (other / "README.md").write_text("another")
            (other / "real" / "README.md").unlink()
            os.link(other / "README.md", other / "real" / "README.md")
            load = (
                (lambda at=other / "real": load_adapter(at))
                if folder is adapter
                # type: ignore[misc]
                else (lambda at=other / "real": read_manifest(at))
            )
            tally.refused("README.md is a hard link to another file", load, InvalidArtifact, "README.md")
    return tally.figure("refused", {"names": len(BAD_NAMES)})


def _plant(folder: Path, name: str) -> str:
    """Put a file there under a bad name where the system lets one, so that only the name is wrong; its digest."""
    try:
        inside = name and Path(name).name == name and not (folder / name).exists()
        if inside:
            (folder / name).write_bytes(b"{}")
    except (OSError, ValueError):
        pass
    return hashlib.sha256(b"{}").hexdigest()


def _remove(folder: Path, name: str) -> None:
    try:
        if name and Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    except (OSError, ValueError):
        pass


def seal(path: Path, body: dict[str, Any]) -> None:
    """Write a manifest with its own digest made right, as somebody would who edits it."""
    body = {name: value for name, value in body.items() if name != "sha256"}
    path.write_bytes(canonical_json({**body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()}))


def planted(place: Place) -> Figure:
    """Files that a manifest does not name: `verify` names each; none is read while the export answers."""
    tally = Tally()
    with place.scratch("planted") as work:
        for made, what in ((place.guard, "adapter"), (place.export, "export")):
            for name in PLANTED:
                folder = shutil.copytree(made, work / "one", dirs_exist_ok=False)
                if not (folder / name).exists():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_text("{}")
                    tally.refused(f"{name} in the {what}", partial(verify_folder, folder), InvalidArtifact, name)
                shutil.rmtree(folder)
        folder = shutil.copytree(place.export, work / "read")
        for name in PLANTED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
            try:
                with opened_below(folder) as names:
                    OnnxVLM.from_pretrained(folder).generate("what is this ?", 2)
            except InvalidArtifact:  # refused, and so not read
                (folder / name).unlink()
        with opened_below(folder) as names:
            answer = OnnxVLM.from_pretrained(folder).generate("what is this ?", 2)
        known = {EXPORT_MANIFEST, *read_manifest(folder).files}
        # A configuration is looked through for code, so that it is refused by name; nothing else comes from it.
        read = {name for name in names - known if not name.endswith("config.json")}
        tally.true(f"read although not named: {sorted(read)}", not read)
        same = OnnxVLM.from_pretrained(place.export).generate("what is this ?", 2)
        tally.true("another answer with what was planted", answer == same)
    return tally.figure("named or not read", {"planted": len(PLANTED)})


_WATCHED: list[tuple[Path, set[str]]] = []
_HOOKED: list[bool] = []


@contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """The files of a folder that Python opens in the block, by their paths in it."""
    if not _HOOKED:  # a hook cannot be taken off again
        sys.addaudithook(_note)
        _HOOKED.append(True)
    names: set[str] = set()
    _WATCHED.append((folder.resolve(), names))
    try:
        yield names
    finally:
        _WATCHED.pop()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _WATCHED and isinstance(arguments[0], (str, os.PathLike)):
        folder, names = _WATCHED[-1]
        path = Path(os.path.abspath(arguments[0]))
        if path.is_relative_to(folder) and not path.is_dir():
            names.add(path.relative_to(folder).as_posix())


ROWS = (
    Row(
        "corruption",
        "any corruption is found",
        "every byte of an adapter flipped, every truncation, 500 bytes of an export: all refused, the file named",
        corruption,
    ),
    Row(
        "names",
        "no path escape, reading or writing",
        f"{len(BAD_NAMES)} names sealed into manifests, links and hard links: all refused",
        bad_names,
    ),
    Row(
        "planted",
        "what is verified is what runs",
        f"{len(PLANTED)} planted files: all named, none read",
        planted,
    ),
)
