"""The commands that are killed, on a model so small that each takes a second, and what lets them start at once."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from safetykit.adapters.artifact.held import remove
from safetykit.adapters.artifact.store import load_adapter
from safetykit.bench._kills.victims import finished, note_of
from safetykit.bench.zoo import build
from safetykit.export.manifest import read_manifest
from safetykit.export.surgery.adapt import adapt, copy_base

COMMANDS = ("fit", "sweep", "export", "eval", "index")
Words = list[str]


def words_of(what: str, folder: Path, data: Path, *, other: bool = False) -> Words:
    """A command without its output; ``other``: with settings that give another output."""
    model, rows, adapter, base = (shlex.quote(str(one)) for one in (folder / "model", data, *_made(folder)))
    rank = 1 if other else 2
    guard = f"fit vlm-guard {model} --data {rows}"
    found = {
        "fit": f"{guard} --layers {0 if other else 1}",
        "sweep": f"{guard} --layers 1 --variant steer --gate paper --direction svd --rank {rank} --sweep",
        "export": f"export {model} --adapter {adapter} --base-onnx {base} --parity-rows {rank}",
        "eval": f"eval {model} --data {rows} --batch-size 4 --max-new-tokens {rank + 2}",
        "index": f"index build reference --model {model} --keys {'float16' if other else 'float32'}",
    }
    return [*shlex.split(found[what]), "--quiet"]


def _made(folder: Path) -> tuple[Path, Path]:
    return folder / "guard", folder / "base"


def make_inputs(folder: Path, data: Path, log: Path) -> None:
    """The checkpoint, a LLaVA of two layers with random weights; and for an export an adapter and graphs without one.

    Raises:
        RuntimeError: a command failed.
    """
    tqdm.monitor_interval = 0  # no thread
    tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and stays taken by one that is killed
    if not (folder / "model").is_dir():
        build("llava", folder / "model")
    guard, base = _made(folder)
    words = {guard: words_of("fit", folder, data), base: ["export", str(folder / "model"), "--quiet"]}
    for out, typed in words.items():
        if not out.is_dir() and (code := finished([*typed, "-o", str(out)], log)):
            raise RuntimeError(f"{' '.join(typed)} ended with {code}: {log.read_text()[-800:]}")


def load_libraries(folder: Path, data: Path, log: Path, commands: tuple[str, ...] = COMMANDS) -> None:
    """Import what the commands import, and translate their ops, once; no thread may live after it.

    Raises:
        RuntimeError: a command failed, or a thread lives, which would be missing in a forked process.
    """
    import_all(folder, {what: words_of(what, folder, data) for what in commands}, log)
    out = folder / "modules"
    if "export" in commands:
        guard, base = _made(folder)
        out.mkdir()
        copy_base(base, out, read_manifest(base))
        adapt(out, read_manifest(base), [load_adapter(guard)])
        remove(out)
    if threading.active_count() > 1:  # ONNX Runtime has one of its own, which no session needs
        raise RuntimeError(f"Threads are running, which forked processes would lack: {threading.enumerate()}.")


def import_all(folder: Path, commands: Mapping[str, Words], log: Path) -> None:
    """Import what commands import, each of which runs once for it; ``folder`` keeps what that was.

    Raises:
        RuntimeError: a command failed.
    """
    listed, out = folder / "modules.json", folder / "modules"
    known: dict[str, list[str]] = json.loads(listed.read_text()) if listed.is_file() else {}
    for what, words in commands.items():
        if what not in known:
            remove(out)
            if code := finished([*words, "-o", str(out)], log, note=folder / "note"):
                raise RuntimeError(f"{what} ended with {code}: {log.read_text()[-800:]}")
            known[what] = note_of(folder / "note")["modules"]
    remove(out)
    listed.write_text(json.dumps(known))
    for name in sorted({one for what in commands for one in known[what]} - set(sys.modules)):
        with suppress(Exception):  # some are made while others are imported
            import_module(name)
