"""Checkpoints with another chat template: a folder with the same weights, made once.

The template is part of the fingerprint, since it moves the last prompt position as surely as a changed weight. So an
adapter that was fitted under one is not applied under another, and an export carries the one that it was made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ...adapters.artifact.configuration import configuration, json_object
from ...adapters.artifact.files import EXPORT_MANIFEST
from ...adapters.artifact.hub import located, name_of
from ...adapters.artifact.output import atomic_folder
from ...adapters.errors import UsageError
from ..families import families
from ..families.family import Family
from ..families.templates import require_compiles
from .cache import cache_of, made_once

TEMPLATE, _LEGACY, _KEY = "chat_template.jinja", "chat_template.json", "chat_template"
_LONGEST = 2**20  # bytes of a template
_GIVE = (
    "Give one: --chat-template FILE (in Python chat_template=), Jinja as in the chat_template.jinja of a checkpoint."
)


def with_chat_template(folder: Path, template: Path | str) -> Path:
    """A checkpoint with the weights of ``folder`` and a chat template.

    Args:
        template: its file, or the text itself.

    Raises:
        UsageError: ``folder`` is an export, or this is no template that compiles in the sandbox.
    """
    text = _read(template) if isinstance(template, Path) else template
    if (folder / EXPORT_MANIFEST).is_file():
        raise UsageError(
            f"--chat-template does nothing with the export {folder}: it carries the template that it was made with.",
            "Leave it out, or export the checkpoint again with it.",
        )
    if "{" not in text:
        if isinstance(template, Path):
            raise UsageError(f"{template} holds no `{{`, and so no chat template.", _GIVE)
        raise UsageError("A text without `{` is no chat template.", f"Name a file by a Path. {_GIVE}")
    require_compiles(text, str(template) if isinstance(template, Path) else "The chat template")
    target = cache_of("templated") / _digest(folder, text) / name_of(folder)
    return made_once(target, lambda: _make(folder, text, target))


def require_chat_template(model: Path | str) -> None:
    """Refuse a checkpoint or export without a chat template; only small files are read.

    Raises:
        UsageError: it has none, and its family has a way to write prompts only with one.
    """
    folder = located(model)
    if not (folder / "config.json").is_file():
        return
    family = families().get(str(json_object(folder, "config.json").get("model_type")), Family())
    named = [name for name in ("tokenizer_config.json", "processor_config.json") if json_object(folder, name).get(_KEY)]
    there = named or any(os.path.lexists(folder / name) for name in (TEMPLATE, _LEGACY))
    if not there and type(family).render is Family.render:
        raise UsageError(f"{model} has no chat template.", _GIVE)


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise UsageError(f"{path} is larger than {_LONGEST >> 20} MiB, and no chat template.", _GIVE)
        return data.decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a chat template ({error}).", _GIVE) from None


def _make(folder: Path, text: str, out: Path) -> None:
    from ...adapters.artifact.checkpoint import INDEX, weight_files  # needs torch

    files = {name: data for name, data in configuration(folder).items() if name != _LEGACY}
    for name in ("tokenizer_config.json", "processor_config.json"):
        if name in files:
            value: dict[str, Any] = json.loads(files[name])
            if value.pop(_KEY, None) is not None:
                files[name] = json.dumps(value, indent=2).encode()
    weights = weight_files(folder)
    with atomic_folder(out) as work:
        for name, data in {**files, TEMPLATE: text.encode()}.items():
            (work / name).write_bytes(data)
        for path in (*weights, *([folder / INDEX] if os.path.lexists(folder / INDEX) else ())):
            _same(path, work / path.name)


def _same(path: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system cannot hold it twice."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def _digest(folder: Path, text: str) -> str:
    """Of the template, and of the checkpoint's files by path, size and time."""
    from ...adapters.artifact.checkpoint import weight_files

    found = hashlib.sha256(text.encode() + b"\0")
    for path in (*(folder / name for name in sorted(configuration(folder))), *weight_files(folder)):
        state = path.stat()
        found.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
