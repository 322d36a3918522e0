"""One small artifact of each kind, how it is loaded and used, and how a change is sealed again."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import EXPORT_MANIFEST, MANIFEST
from safetykit.adapters.artifact.fingerprint import fingerprint
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.store import load_adapter
from safetykit.adapters.errors import SafetykitError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench.zoo import build
from safetykit.export.commands.verification import verify_folder
from safetykit.export.document import report
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.index.caption_index import CaptionIndex
from safetykit.toolkit.index.embedding import EmbedderInfo
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.retrieval.build import build_index

ASKED = "what is this ?"
_ROWS = 12  # of a split's records


@dataclass(frozen=True)
class Kind:
    """A kind of artifact.

    Attributes:
        manifest: its sealed manifest, by which changed files are named anew; None if it has none.
        make: writes one into a folder, given that of a checkpoint.
        load: reads all of it and uses it a little.
    """

    manifest: str | None
    make: Callable[[Path, Path], Any]
    load: Callable[[Path], Any]


class _Hashed:
    """An embedder of texts by their digest."""

    info, dimension, centred = EmbedderInfo(kind="precomputed", name="digest"), 32, False

    def embed(self, texts: Any) -> np.ndarray:
        made = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
        return np.stack(made).astype(np.float32) - 127


def _records() -> list[Any]:
    found = [record for record in load_records(data_path("reference")) if record.carrier == "text"]
    parts = ([one for one in found if one.split == split] for split in ("fit", "calibration", "test"))
    return [one for part in parts for one in subset(part, _ROWS)]


def make_adapter(folder: Path, model: Path) -> None:
    VLMGuard(gate="calibrated", false_positive_rate=0.2).fit(VLM.from_pretrained(model), _records()).save(folder)


def make_export(folder: Path, model: Path) -> None:
    vlm, adapter = VLM.from_pretrained(model), folder.with_name(f"{folder.name}.adapter")
    make_adapter(adapter, model)
    tests = [record for record in _records() if record.split == "test"]
    export_onnx(vlm, [load_adapter(adapter)], folder, records=tests, max_new_tokens=2)


def make_index(folder: Path, model: Path) -> None:
    build_index(lambda: iter([f"a picture of {n} kites" for n in range(20)]), _Hashed(), folder)


def make_checkpoint(folder: Path, model: Path) -> None:
    build("llava", folder)


def use_adapter(folder: Path) -> None:
    adapter = Adapter.load(folder)
    repr(adapter)
    for item in adapter.interventions:
        item.make_op()
    verify_folder(folder)


def use_index(folder: Path) -> None:
    index = CaptionIndex.load(folder)
    _ = index[0], index[-1], index.digest
    index.search(np.ones((1, index.manifest.dimension), np.float32), 1)


def use_export(folder: Path) -> None:
    """Run it also where ``verify`` refuses it: its provenance, worked out again, betrays almost every change."""
    refused = None
    try:
        verify_folder(folder)
    except SafetykitError as error:
        refused = error
    OnnxVLM.from_pretrained(folder).generate(ASKED, 1)
    if refused is not None:
        raise refused


def use_checkpoint(folder: Path) -> None:
    fingerprint(folder)
    VLM.without_weights(folder)
    VLM.from_pretrained(folder).generate(ASKED, 1)


KINDS: Mapping[str, Kind] = {
    "adapter": Kind(MANIFEST, make_adapter, use_adapter),
    "index": Kind(MANIFEST, make_index, use_index),
    "export": Kind(EXPORT_MANIFEST, make_export, use_export),
    "checkpoint": Kind(None, make_checkpoint, use_checkpoint),
}


def remember_drawings() -> None:
    """Draw equal figures of a report once a process: a drawing depends on nothing but what is drawn.

    ``verify`` draws the whole report again, which is nine tenths of its time, and most mutants change no figure.
    """
    for name in ("rates", "gate_scores", "parity", "_drawn"):
        setattr(report, name, _remembered(getattr(report, name)))


def _remembered(draw: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[bytes, Any] = {}

    def drawn(*shown: Any) -> Any:
        try:
            key = pickle.dumps(shown)
        except Exception:  # of a mutant whose values cannot be told apart: it is drawn
            return draw(*shown)
        if key not in made:
            made[key] = draw(*shown)
        return made[key]

    return drawn


def seal(manifest: bytes, changed: Mapping[str, bytes]) -> bytes:
    """A manifest that names the changed files by their new digests and carries its own; as it is, if it is no JSON."""
    try:
        body = json.loads(manifest)
        if isinstance(body.get("files"), dict):
            body["files"] |= {name: hashlib.sha256(data).hexdigest() for name, data in changed.items()}
        body.pop("sha256", None)
        return canonical_json({**body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()})
    except (ValueError, AttributeError, RecursionError):
        return manifest
