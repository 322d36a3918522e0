"""Base export: the three graphs of a VLM as it is, before any adapter.

Traced without weights, which are read from where they lie while the data files beside the graphs are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...adapters.artifact.configuration import configuration
from ...adapters.artifact.manifest import BaseInfo
from ...adapters.artifact.output import atomic_folder
from ...toolkit.families.family import kv_shape
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, GraphInfo, Precision, RoundingInfo, write_manifest
from .int4 import INT4_CHOICES, Int4Options
from .quantise import quantise
from .specs import graph_specs
from .tracing import OPSET, export_graph

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

Progress = Callable[[str], None]


def export_base(
    vlm: VLM,
    out: Path | str,
    precision: Precision = "fp32",
    *,
    int4: Int4Options | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    fused: bool = True,
) -> ExportManifest:
    """Export ``vlm`` without any adapter; ``out`` appears complete or not at all.

    Args:
        precision: of weights and activations; the model is converted part by part.
        int4: how an int4 decoder is rounded.
        progress: called with the name of each step as it starts.
        fused: the decoder attends by one node a layer, where its family can.

    Raises:
        UsageError: the architecture is not supported, or ``out`` exists and ``overwrite`` is off.
    """
    with atomic_folder(Path(out), overwrite=overwrite) as work:
        return write_base(vlm, work, precision, progress, fused=fused, int4=int4)


def write_base(
    vlm: VLM,
    folder: Path,
    precision: Precision,
    progress: Progress | None = None,
    *,
    wanted: Sequence[Graph] = GRAPHS,
    fused: bool = True,
    int4: Int4Options | None = None,
) -> ExportManifest:
    """Write graphs, configuration files and manifest into the empty ``folder``.

    Args:
        precision: int4 is fp32 with a quantised decoder.
        wanted: which of the graphs; the caller brings the others.
        fused: the decoder attends by one node a layer, where its family can.
        int4: how an int4 decoder is rounded.

    Raises:
        UsageError: the architecture is not supported, or the quantiser is not installed.
        InvalidArtifact: a weight that a graph needs is missing.
    """
    specs = graph_specs(vlm.model, fused=fused, wanted=wanted)
    graphs = {}
    for name in wanted:
        if progress:
            progress(f"exporting {name}")
        model = export_graph(specs[name], precision, vlm.weights.of)
        if precision == "int4" and name == "decoder":
            quantise(model, int4)
        save_graph(model, folder / LAYOUT.graph(name))
        graphs[name] = graph_info(model)
    copy_configuration(Path(vlm.path), folder)
    text = vlm.model.config.get_text_config()
    heads, head_dim = kv_shape(text)
    manifest = ExportManifest(
        base=BaseInfo(
            fingerprint=vlm.fingerprint,
            architecture=type(vlm.model).__name__,
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
        ),
        precision=precision,
        mode="base",
        opset=OPSET,
        n_kv_heads=heads,
        head_dim=head_dim,
        image_token_id=vlm.inputs.image_token_id,
        family=vlm.inputs.family.name,
        graphs=graphs,
        int4=_rounding(int4) if precision == "int4" else None,
        versions=versions(),
    )
    return write_manifest(manifest, folder)


def quantise_decoder(folder: Path, manifest: ExportManifest, int4: Int4Options | None = None) -> ExportManifest:
    """Quantise the decoder of the base folder ``folder`` in place.

    Args:
        manifest: of the folder.
        int4: how it is rounded.

    Returns:
        The new manifest, as written; its precision is int4.

    Raises:
        UsageError: the quantiser is not installed.
        UnsupportedGraph: the decoder has no constant weight.
    """
    model = ir.load(folder / LAYOUT.decoder)
    quantise(model, int4)
    with TemporaryDirectory(dir=folder, prefix=".quantised-") as scratch:  # its sources are read while it is written
        save_graph(model, Path(scratch) / LAYOUT.decoder)
        for name in (LAYOUT.decoder, LAYOUT.data("decoder")):
            (Path(scratch) / name).replace(folder / name)
    graphs = {**manifest.graphs, "decoder": graph_info(model)}
    changes = {"precision": "int4", "graphs": graphs, "int4": _rounding(int4)}
    return write_manifest(manifest.model_copy(update=changes), folder)


def _rounding(int4: Int4Options | None) -> RoundingInfo:
    chosen = int4 or Int4Options()
    return RoundingInfo(**{name: getattr(chosen, name) for name in INT4_CHOICES})


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph with all its weights in ``<path>.data`` beside it."""
    data = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=data.name)
    data.touch()  # a graph without weights still has its data file, so that the layout is always the same


def graph_info(model: ir.Model) -> GraphInfo:
    """Names of the inputs and outputs of a graph."""
    return GraphInfo(
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )


def copy_configuration(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer, processor and chat template of a checkpoint, where it has them."""
    for name, data in configuration(source).items():
        (folder / name).write_bytes(data)


def versions() -> dict[str, str]:
    """Versions of the packages that shape an export."""
    return {name: version(name) for name in ("safetykit", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")}
