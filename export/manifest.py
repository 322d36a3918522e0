"""An export folder: its file names and its manifest.

The manifest (``safetykit.json``) is written last, names every other file with its SHA-256, and
carries its own digest, so that any changed, truncated or missing byte is noticed and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from ..adapters.artifact.files import (
    EXPORT_MANIFEST,
    SIGNATURE,
    read_inside,
    require_hashes,
    require_named,
    require_unplanted,
    sha256_file,
    write_atomic,
)
from ..adapters.artifact.manifest import (
    AdapterInfo,
    BaseInfo,
    DetectorInfo,
    DetectorState,
    RetrievalInfo,
    Sha256,
    Strict,
    dump_sealed,
    load_sealed,
)
from ..adapters.artifact.names import apart, portable
from ..adapters.artifact.signature import require_accepted
from ..adapters.artifact.sites import Gating
from ..adapters.errors import InvalidArtifact, UsageError

Precision = Literal["fp32", "fp16", "int4", "int8"]
Mode = Literal["base", "bake", "fold", "hot-swap"]
Graph = Literal["vision_encoder", "embed_tokens", "decoder"]
GRAPHS: tuple[Graph, ...] = ("vision_encoder", "embed_tokens", "decoder")
# One that the registry of layouts knows, or knew where the folder was made.
LayoutWord = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]

ForeignLayout = Literal["genai", "optimum", "transformers.js"]
CHECKPOINT = "the checkpoint"

# Plain names as in FileName, with folders between them; nothing leads out of the export.
_NAME = r"[a-zA-Z0-9_][a-zA-Z0-9_-]*(\.[a-zA-Z0-9_-]+)*"
FilePath = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(/{_NAME})*$", max_length=240), AfterValidator(portable)]

_MANIFEST_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class Layout:
    """File names in an export folder of the layout ``onnx``; in the others the graphs lie elsewhere."""

    vision_encoder: str = "vision_encoder.onnx"
    embed_tokens: str = "embed_tokens.onnx"
    decoder: str = "decoder.onnx"
    manifest: str = EXPORT_MANIFEST
    parity: str = "parity.json"
    evaluation: str = "evaluation.json"
    card: str = "README.md"
    report: str = "report.html"
    captions: str = "captions.jsonl"
    canary: str = "canary.json"
    provenance: str = "provenance.json"
    sbom: str = "sbom.cdx.json"
    interface: str = "io.json"
    answering: str = "decoder.answer.onnx"

    def graph(self, name: Graph) -> str:
        """File name of a graph."""
        return str(getattr(self, name))

    def data(self, name: Graph) -> str:
        """File name of a graph's external weights."""
        return f"{self.graph(name)}.data"

    def base_graph(self, name: Graph) -> str:
        """File name of a graph as it is without adapters; it reads the same weights."""
        return f"{name}.base.onnx"

    def adapter_file(self, name: Graph) -> str:
        """File name of a graph's parameters in the format that ONNX Runtime swaps adapters by."""
        return f"{name}.onnx_adapter"

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
    gate: Gating = "per-token"
    reads: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    runtime_inputs: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether a decision of the gate reaches later calls."""
        return self.gate != "per-token"


class ParameterInfo(Strict):
    """A parameter that callers may override.

    Attributes:
        name: of the graph's input.
        graph: which one.
        source: the part of an adapter that it holds: ``<k>.<parameter>`` of intervention k, ``branch.<parameter>``,
            ``detector.<field>``, ``update.<name of the weight>``, or ``update.<name>.up`` and ``.down``.
        shape: an axis that an override may size as it likes has a name, equal names are equal sizes.
        dtype: as NumPy calls it.
        transposed: the graph reads a weight [in, out] where the base has [out, in].
        strength: what its op adds to the state is proportional to it.
    """

    name: str
    graph: Graph
    source: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float16", "int64"]
    transposed: bool = False
    strength: bool = False


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


class Recalibration(Strict):
    """A threshold that was set again on the export's own graphs, see :mod:`.recalibrate`.

    Attributes:
        what: ``risk``, or ``{k}.score`` of intervention k.
        fitted: the threshold before.
        threshold: the one in the graph.
        records: calibration records it was set on.
        wanted: how many of them lie above ``fitted`` in PyTorch.
        above_fitted: how many lie above ``fitted`` on these graphs.
        above: how many lie above ``threshold`` on these graphs.
    """

    what: str
    fitted: float
    threshold: float
    records: int
    wanted: int
    above_fitted: int
    above: int


class WeightsInfo(Strict):
    """How a decoder's weights compare with the checkpoint's.

    Attributes:
        exact: parameters that are equal once rounded to the graph's type.
        nearest: quantised ones, of which every compared value has the nearest code.
        unread: parameters that were not found as such; they may be folded into others.
        values: how many values were compared.
    """

    exact: int
    nearest: int
    unread: tuple[str, ...] = ()
    values: int


class RoundingInfo(Strict):
    """How an int4 decoder that was made here was rounded, see :class:`safetykit.export.base.int4.Int4Options`."""

    rounding: str
    block_size: int
    head_8bit: bool


class ForeignInfo(Strict):
    """Where base graphs come from.

    Attributes:
        layout: of the folder they were found in.
        sources: for each graph its file there, or ``the checkpoint`` when it was exported from that.
        changes: what was done to their interface.
        weights: of the decoder.
        rows_alone: rows of different lengths are run one by one: the decoder does not understand padding on the left.
        last_logits: the decoder gives logits at the last position only.
        continues: several tokens may follow cached ones; otherwise a prompt is read whole, and then token by token.
    """

    layout: ForeignLayout
    sources: dict[str, str]
    changes: tuple[str, ...] = ()
    weights: WeightsInfo
    rows_alone: bool = False
    last_logits: bool = False
    continues: bool = True


class ExportManifest(Strict):
    """``safetykit.json``: what an export folder holds.

    Attributes:
        mode: ``bake`` puts parameters beside the base's weights, ``fold`` into them, ``hot-swap`` beside them so that
            callers may override them.
        layout: for which runtime the folder is laid out.
        paths: where the graphs lie that are not at their place in the layout ``onnx``.
        mask_channel: embeddings and image features have one channel more, 1 at tokens of pictures: ``vision_mask``.
        family: model type that says how the graphs are fed; None if that is not known.
        parameters: what callers may override, in mode ``hot-swap``.
        gate_state: how held gates get their decision back while an answer is generated; None without held gates.
        int4: how its decoder was rounded, if safetykit did so.
        foreign: where the base graphs come from, if safetykit did not export them.
        updates: weights of the base that have new values.
        detector: when requests are refused before generation; the decoder then gives ``risk_score``.
        detector_state: what the risk comes from; the decoder states the same. None without a detector.
        whole_prompt: why the adapters need a prompt to be read in one call; None if it may come in chunks.
        enforce: whether the decoder forces the logits of refused requests itself.
        retrieval: how texts are retrieved for pictures; the vision encoder then gives them or the query.
        recalibrated: thresholds that are not the adapters' own.
        uncorrected_detector_allowed: the detector was not fitted under the correctors beside it, and was accepted.
    """

    schema_version: Literal[1] = 1
    kind: Literal["safetykit.export"] = "safetykit.export"
    base: BaseInfo
    precision: Precision
    mode: Mode
    layout: LayoutWord = "onnx"
    paths: dict[Graph, FilePath] = Field(default_factory=dict)
    mask_channel: bool = False
    opset: int
    n_kv_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    image_token_id: int
    family: str | None = None
    graphs: dict[Graph, GraphInfo]
    adapters: tuple[AdapterInfo, ...] = ()
    interventions: tuple[InterventionInfo, ...] = ()
    parameters: tuple[ParameterInfo, ...] = ()
    gate_state: Literal["inputs", "cache"] | None = None
    updates: tuple[str, ...] = ()
    branch: BranchInfo | None = None
    detector: DetectorInfo | None = None
    detector_state: DetectorState | None = None
    whole_prompt: str | None = "the version that wrote the export did not look at that"
    enforce: bool = False
    retrieval: RetrievalInfo | None = None
    recalibrated: tuple[Recalibration, ...] = ()
    wrong_base_allowed: bool = False
    uncorrected_detector_allowed: bool = False
    int4: RoundingInfo | None = None
    foreign: ForeignInfo | None = None
    versions: dict[str, str]
    files: Annotated[dict[FilePath, Sha256], AfterValidator(apart)] = Field(default_factory=dict)

    def graph_file(self, name: Graph) -> str:
        """Where a graph lies in the folder."""
        return self.paths.get(name, LAYOUT.graph(name))


def hash_folder(folder: Path) -> dict[str, str]:
    """Path and SHA-256 of every file in ``folder`` and below, but manifest and signature; hidden ones are left out."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    return {
        name.as_posix(): sha256_file(path)
        for name, path in found.items()
        if name.as_posix() not in (LAYOUT.manifest, SIGNATURE) and not any(part.startswith(".") for part in name.parts)
    }


def attachment_name(kind: str, adapter: int) -> str:
    """File name of what came with an adapter: ``sweep.json``, ``sweep-1.json``, …"""
    return f"{kind}.json" if adapter == 0 else f"{kind}-{adapter}.json"


def write_manifest(manifest: ExportManifest, folder: Path) -> ExportManifest:
    """Write ``manifest`` with the digests of the files now in ``folder``; returns it as written."""
    sealed = manifest.model_copy(update={"files": hash_folder(folder)})
    write_atomic(folder / LAYOUT.manifest, dump_sealed(sealed))
    return sealed


def read_manifest(folder: Path, *, verify: bool = True) -> ExportManifest:
    """Read and check the manifest of an export folder.

    Args:
        verify: also compare every file with its digest, and refuse unnamed ones that would be read; where a policy
            asks for signatures, all unnamed ones.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: the manifest or a file is missing, linked, damaged or was changed; named.
        SignatureFailed: the policy in force refuses the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no export folder at {folder}.", "Make one with `safetykit export`.")
    path = folder / LAYOUT.manifest
    data = read_inside(folder, LAYOUT.manifest, _MANIFEST_LIMIT)
    signed_by = require_accepted(folder, LAYOUT.manifest, data)
    manifest = load_sealed(ExportManifest, data, str(path))
    wanted = {manifest.graph_file(graph) for graph in GRAPHS}
    if manifest.layout == "onnx":
        wanted |= {LAYOUT.data(graph) for graph in GRAPHS}
    if missing := sorted(wanted - set(manifest.files)) or sorted(set(GRAPHS) - set(manifest.graphs)):
        raise InvalidArtifact(f"{path} does not name {missing[0]}.", "Export the model again.")
    if verify:
        require_hashes(folder, dict(manifest.files))
        require_unplanted(folder, manifest.files)
        if signed_by is not None:
            require_named(folder, {LAYOUT.manifest, *manifest.files})
    return manifest
