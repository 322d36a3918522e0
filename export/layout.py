"""An export folder: its file names and its manifest.

The manifest (``safetykit.json``) is written last, names every other file with its SHA-256, and
carries its own digest, so that any changed, truncated or missing byte is noticed and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..adapters.errors import InvalidArtifact, UsageError
from ..adapters.files import read_inside, require_hashes, sha256_file, write_atomic
from ..adapters.manifest import (
    AdapterInfo,
    BaseInfo,
    DetectorInfo,
    FileName,
    RetrievalInfo,
    Sha256,
    Strict,
    dump_sealed,
    load_sealed,
)

Precision = Literal["fp32", "fp16"]
Mode = Literal["base", "bake", "fold"]
Graph = Literal["vision_encoder", "embed_tokens", "decoder"]
GRAPHS: tuple[Graph, ...] = ("vision_encoder", "embed_tokens", "decoder")

_MANIFEST_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class Layout:
    """File names in an export folder."""

    vision_encoder: str = "vision_encoder.onnx"
    embed_tokens: str = "embed_tokens.onnx"
    decoder: str = "decoder.onnx"
    manifest: str = "safetykit.json"
    parity: str = "parity.json"
    evaluation: str = "evaluation.json"
    card: str = "README.md"
    report: str = "report.html"
    captions: str = "captions.jsonl"

    def graph(self, name: Graph) -> str:
        """File name of a graph."""
        return str(getattr(self, name))

    def data(self, name: Graph) -> str:
        """File name of a graph's external weights."""
        return f"{self.graph(name)}.data"

    def adapter_data(self, name: Graph) -> str:
        """File name of the adapter parameters of a graph."""
        return f"{name}.adapter.data"


LAYOUT = Layout()


class GraphInfo(Strict):
    """Names of a graph's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class InterventionInfo(Strict):
    """What became of one intervention in the graph.

    ``index`` counts over all adapters of the export; names in the graph start ``safetykit.<index>.``.
    """

    index: int
    adapter: int
    op: str
    site: str
    scope: str
    phase: str
    graph: Graph
    extras: tuple[str, ...] = ()
    runtime_inputs: tuple[str, ...] = ()


class BranchInfo(Strict):
    """The branch of a detector in the decoder.

    Attributes:
        adapter: to which adapter it belongs.
        blocks: block evaluations of one prefill, those of the answer included.
    """

    adapter: int
    op: str
    safety: str
    fused: str
    blocks: int


class ExportManifest(Strict):
    """``safetykit.json``: what an export folder holds.

    Attributes:
        mode: ``bake`` puts parameters beside the base's weights, ``fold`` into them.
        updates: weights of the base that have new values.
        detector: when requests are refused before generation; the decoder then gives ``risk_score``.
        enforce: whether the decoder forces the logits of refused requests itself.
        retrieval: how texts are retrieved for pictures; the vision encoder then gives them or the query.
    """

    schema_version: Literal[1] = 1
    kind: Literal["safetykit.export"] = "safetykit.export"
    base: BaseInfo
    precision: Precision
    mode: Mode
    opset: int
    n_kv_heads: int
    head_dim: int
    image_token_id: int
    graphs: dict[Graph, GraphInfo]
    adapters: tuple[AdapterInfo, ...] = ()
    interventions: tuple[InterventionInfo, ...] = ()
    updates: tuple[str, ...] = ()
    branch: BranchInfo | None = None
    detector: DetectorInfo | None = None
    enforce: bool = False
    retrieval: RetrievalInfo | None = None
    wrong_base_allowed: bool = False
    versions: dict[str, str]
    files: dict[FileName, Sha256] = Field(default_factory=dict)


def hash_folder(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file in ``folder`` but the manifest."""
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.name != LAYOUT.manifest and not path.name.startswith(".")
    }


def write_manifest(manifest: ExportManifest, folder: Path) -> ExportManifest:
    """Write ``manifest`` with the digests of the files now in ``folder``; returns it as written."""
    sealed = manifest.model_copy(update={"files": hash_folder(folder)})
    write_atomic(folder / LAYOUT.manifest, dump_sealed(sealed))
    return sealed


def read_manifest(folder: Path, *, verify: bool = True) -> ExportManifest:
    """Read and check the manifest of an export folder.

    Args:
        verify: also compare every file with its digest.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: the manifest or a file is missing, linked, damaged or was changed; named.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no export folder at {folder}.", "Make one with `safetykit export`.")
    path = folder / LAYOUT.manifest
    manifest = load_sealed(ExportManifest, read_inside(folder, LAYOUT.manifest, _MANIFEST_LIMIT), str(path))
    wanted = {name for graph in GRAPHS for name in (LAYOUT.graph(graph), LAYOUT.data(graph))}
    if missing := sorted(wanted - set(manifest.files)) or sorted(set(GRAPHS) - set(manifest.graphs)):
        raise InvalidArtifact(f"{path} does not name {missing[0]}.", "Export the model again.")
    if verify:
        require_hashes(folder, dict(manifest.files))
    return manifest
