"""Base export: the three graphs of a VLM as it is, before any adapter.

``torch.onnx.export`` (dynamo, opset 20), weights always as external data, local paths stripped.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CheckerPass, ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import nn

from ...adapters.artifact.files import CONFIGURATION_FILES, atomic_folder
from ...adapters.artifact.manifest import BaseInfo
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, GraphInfo, Precision, write_manifest
from .specs import GraphSpec, graph_specs, kv_shape

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

OPSET = 20
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
Progress = Callable[[str], None]


def export_base(
    vlm: VLM,
    out: Path | str,
    precision: Precision = "fp32",
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportManifest:
    """Export ``vlm`` without any adapter; ``out`` appears complete or not at all.

    Args:
        precision: of weights and activations; the model is converted part by part.
        progress: called with the name of each step as it starts.

    Raises:
        UsageError: the architecture is not supported, or ``out`` exists and ``overwrite`` is off.
    """
    with atomic_folder(Path(out), overwrite=overwrite) as work:
        return write_base(vlm, work, precision, progress)


def write_base(
    vlm: VLM,
    folder: Path,
    precision: Precision,
    progress: Progress | None = None,
    *,
    wanted: Sequence[Graph] = GRAPHS,
) -> ExportManifest:
    """Write graphs, configuration files and manifest into the empty ``folder``.

    Args:
        wanted: which of the graphs; the caller brings the others.
    """
    specs = graph_specs(vlm.model)
    graphs = {}
    for name in wanted:
        if progress:
            progress(f"exporting {name}")
        model = export_graph(specs[name], precision)
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
        versions=versions(),
    )
    return write_manifest(manifest, folder)


def export_graph(spec: GraphSpec, precision: Precision) -> ir.Model:
    """Trace one graph; its weights are converted on a copy when the model has another precision.

    Inner values named by ``spec.taps`` keep those names and are not outputs.
    """
    dtype = DTYPES[precision]
    module = spec.module if _dtype(spec.module) == dtype else _converted(spec.module, dtype)
    with quiet_export():
        program = torch.onnx.export(
            module.eval(),
            spec.args(dtype),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=[*spec.outputs, *spec.taps],
            dynamic_shapes=spec.dynamic,
            verbose=False,
        )
    assert program is not None
    model = program.model
    for _ in spec.taps:  # pop: deleting a slice would leave the values marked as outputs
        model.graph.outputs.pop()
    RemoveUnusedNodesPass()(model)
    strip_metadata(model)
    CheckerPass(full_check=True)(model)
    return model


def _dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # Parameters only: `module.half()` would also round buffers such as rotary frequencies. The copy shares them all
    # at first, so that no second copy in the old precision is made.
    old = {id(parameter): parameter for parameter in module.parameters()}
    new: dict[int, nn.Parameter] = {}
    copied = copy.deepcopy(module, dict(old))
    for part in copied.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                if id(parameter) not in new:
                    new[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                part._parameters[name] = new[id(parameter)]  # tied weights stay tied
    return copied


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep the exporter's notes about its own internals off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def strip_metadata(model: ir.Model) -> None:
    """Remove stack traces and doc strings: they hold paths of the machine that exported."""
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()


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
    for name in CONFIGURATION_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def versions() -> dict[str, str]:
    """Versions of the packages that shape an export."""
    return {name: version(name) for name in ("safetykit", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")}
