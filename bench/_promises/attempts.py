"""Things that are too large, and one attempt at one of them.

``python -m safetykit.bench._promises.attempts CASE FOLDER`` prints its largest memory, its seconds of processor and the
error that ended it. Nothing is imported here that an attempt does not need.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetykit.adapters.errors import SafetykitError

_ADDRESSES = 24 * 2**30  # bytes of address space, so that the machine survives what is not limited
_SPARSE = 2 * 2**30  # bytes of files that are mostly a hole
_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_GROWS = (
    "{% set ns = namespace(s='x' * 1000) %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
)


@dataclass(frozen=True)
class Case:
    """Something too large.

    Attributes:
        of: which folder it is done to: ``export``, ``guard`` (an adapter), ``model`` or nothing.
        prepare: makes a copy of it too large.
        attempt: meets it, given the folder; called in a process of its own.
    """

    of: str
    prepare: Callable[[Path], object]
    attempt: Callable[[Path], object]


def _sparse(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(_touched(folder / name), _SPARSE)


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _png(width: int, height: int) -> bytes:
    """A PNG of one grey level of one bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _picture(width: int, height: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "picture.png").write_bytes(_png(width, height))


def _template(text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        from safetykit.export.manifest import read_manifest, write_manifest

        (folder / "chat_template.jinja").write_text(text)
        write_manifest(read_manifest(folder, verify=False), folder)

    return write


def _ask(prompt: str, picture: str | None = None) -> Callable[[Path], object]:
    """Ask an export."""

    def attempt(folder: Path) -> object:
        from safetykit.export.runtime.onnx_vlm import OnnxVLM
        from safetykit.toolkit.model.requests import Request

        vlm = OnnxVLM.from_pretrained(folder)
        return vlm.generate([Request(prompt, str(folder / picture) if picture else None)], 2)

    return attempt


def _see(picture: str) -> Callable[[Path], object]:
    """Open a picture."""

    def attempt(folder: Path) -> object:
        from safetykit.toolkit.model.requests import Request

        return Request("what is this ?", str(folder / picture))

    return attempt


def _verify(folder: Path) -> object:
    from safetykit.export.commands.verification import verify_folder

    return verify_folder(folder)


def _open(folder: Path) -> object:
    from safetykit.export.runtime.onnx_vlm import OnnxVLM

    return OnnxVLM.from_pretrained(folder)


def _load(folder: Path) -> object:
    from safetykit.adapters.artifact.store import load_adapter

    return load_adapter(folder)


def _read(folder: Path) -> object:
    """Read a checkpoint's processor, as every command does first."""
    from safetykit.toolkit.model.inputs import InputProcessor

    return InputProcessor.from_pretrained(folder)


def _records(folder: Path) -> object:
    from safetykit.toolkit.data.records import load_records

    return load_records(folder / "records.jsonl")


CASES: Mapping[str, Case] = {
    "verify an export whose README.md has 2 GB": Case("export", _sparse("README.md"), _verify),
    "verify an export whose manifest has 2 GB": Case("export", _sparse("safetykit.json"), _verify),
    "verify an export whose parity.json has 2 GB": Case("export", _sparse("parity.json"), _verify),
    "open an export whose tokenizer.json has 2 GB": Case("export", _sparse("tokenizer.json"), _open),
    "verify an adapter whose README.md has 2 GB": Case("guard", _sparse("README.md"), _verify),
    "load an adapter whose manifest has 2 GB": Case("guard", _sparse("manifest.json"), _load),
    "load an adapter whose tensors have 2 GB": Case("guard", _sparse("adapter.safetensors"), _load),
    "read a checkpoint whose config.json has 2 GB": Case("model", _sparse("config.json"), _read),
    "read a checkpoint whose tokenizer.json has 2 GB": Case("model", _sparse("tokenizer.json"), _read),
    "read records of one line of 2 GB": Case("", _sparse("records.jsonl"), _records),
    "a picture of 65,000 × 1": Case("export", _picture(65_000, 1), _ask("what is this ?", "picture.png")),
    "a picture of 13,000 × 13,000": Case("", _picture(13_000, 13_000), _see("picture.png")),
    "a picture of 30,000 × 30,000": Case("", _picture(30_000, 30_000), _see("picture.png")),
    "a picture file of 2 GB": Case("", _sparse("picture.png"), _see("picture.png")),
    "a rectangle of 5,000 digits": Case("", _picture(9, 9), _see(f"picture.png#xywh={'9' * 5000},0,1,1")),
    "a prompt of a million letters": Case("export", lambda folder: None, _ask("a" * 1_000_000)),
    "a prompt of a million words": Case("export", lambda folder: None, _ask("club " * 1_000_000)),
    "a chat template that loops 10^10 times": Case("export", _template(_LOOPS), _ask("what is this ?")),
    "a chat template that doubles its text 60 times": Case("export", _template(_GROWS), _ask("what is this ?")),
}


def _spent() -> float:
    """Seconds of processor that this process and those that it waited for have taken."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _attempt(name: str, folder: Path) -> dict[str, Any]:
    """Meet a case in this process."""
    import transformers  # noqa: F401  what takes long to import is not the attempt's

    from safetykit.adapters.artifact import store  # noqa: F401
    from safetykit.export.commands import verification  # noqa: F401
    from safetykit.export.runtime import onnx_vlm  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    began = _spent()
    try:
        CASES[name].attempt(folder)
        error, typed = "", False
    except SafetykitError as caught:
        error, typed = f"{type(caught).__name__}: {str(caught)[:150]}", True
    except Exception as caught:
        error, typed = f"{type(caught).__name__}: {str(caught)[:150]}", False
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"error": error, "typed": typed, "mb": int(peak.split()[1]) / 1024, "seconds": _spent() - began}


if __name__ == "__main__":
    print(json.dumps(_attempt(sys.argv[1], Path(sys.argv[2]))))
