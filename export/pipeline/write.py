"""Writing an export's graphs: base graphs, then the adapters in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.store import require_base
from ...adapters.errors import UsageError
from ...toolkit.model.folding import fold_all
from ...toolkit.model.inputs import InputProcessor
from ..base.fitted_on import require_graph_weights, weights_of
from ..base.int4 import Int4Options
from ..base.own import write_base
from ..foreign.importing import import_graphs
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, Precision, read_manifest
from ..parity.exposed import require_movement
from ..parity.graph_base import OWN_WEIGHTS, GraphBase, Standing
from ..parity.recalibrate import recalibrated
from ..parity.retrieval_checks import require_response
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import CPU
from ..surgery.adapt import adapt, copy_base, place
from ..surgery.answering import without_branch
from ..surgery.layer_updates import LayerUpdate, plan_updates
from .plan import Plan
from .requirements import require_same_base

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

Say = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """Graphs in an unfinished folder.

    Attributes:
        manifest: of the folder as it is.
        adapters: as they are in the graphs: folded, with the thresholds set again.
        unfolded: the adapters before they were folded; none in other modes.
        compared: what PyTorch runs with where decisions are compared: as in the graphs, but with the fitted thresholds.
        base: the export without adapters; for a base export, the export itself.
        export: the export; it and the base hold no session until they are run.
        standing: what PyTorch runs with where decisions are compared: the graph's weights, if adapters were fitted on
            them.
    """

    manifest: ExportManifest
    adapters: tuple[Adapter, ...]
    unfolded: tuple[Adapter, ...]
    compared: tuple[Adapter, ...]
    base: OnnxVLM
    export: OnnxVLM
    standing: Standing = OWN_WEIGHTS


def require_model(plan: Plan, vlm: VLM) -> None:
    """Refuse what shows only now that the model is loaded: another base, or a site that it lacks.

    Raises:
        WrongBase: an adapter was fitted on another model.
        UsageError: the model has no such site.
    """
    for adapter in plan.adapters:
        if not plan.options.allow_wrong_base:
            require_base(adapter, vlm.fingerprint, str(vlm.path))
        branch = [adapter.branch.safety, adapter.branch.fused] if adapter.branch else []
        for site in [*(item.site for item in adapter.interventions), *branch]:
            vlm.parts.module(site)


def write_graphs(plan: Plan, vlm: VLM, work: Path, say: Say) -> Written:
    """Write base graphs and bake the adapters into them.

    Args:
        vlm: whose weights need not be loaded; they are in memory while values of the whole model are asked for.
        work: the empty folder.
        say: called with the name of each step as it starts.

    Raises:
        UsageError: an adapter changes nothing, or cannot be folded.
        UnsupportedGraph: the base graphs are not understood.
        WrongBase: they belong to another model.
    """
    options = plan.options
    adapters: Sequence[Adapter] = plan.adapters
    if options.mode == "fold" and not plan.bare:
        with vlm.in_memory():
            adapters = fold_all(vlm, plan.adapters)
    layers = plan_updates(vlm, [update for adapter in adapters for update in adapter.updates])
    base = _write_base(plan, vlm, work, say).model_copy(
        update={
            "wrong_base_allowed": options.allow_wrong_base,
            "uncorrected_detector_allowed": not plan.fitted_together,
        }
    )
    if plan.bare:
        export = open_export(plan, vlm, work, base)
        return Written(base, (), (), (), export, export)
    standing = _standing(plan, vlm, work, base)
    bare: dict[Graph, bytes] = {name: (work / LAYOUT.graph(name)).read_bytes() for name in GRAPHS}
    fitted = tuple(adapters)
    if plan.calibration:
        say("setting thresholds again")
        adapters, changes = recalibrated(
            vlm,
            adapters,
            lambda some: open_export(plan, vlm, work, _bake(plan, work, base, some, layers)),
            plan.calibration,
            standing=standing,
            allow_wrong_base=options.allow_wrong_base,
        )
        base = base.model_copy(update={"recalibrated": changes})
        for name, data in bare.items():
            write_atomic(work / LAYOUT.graph(name), data)
    say("baking")
    manifest = _bake(plan, work, base, adapters, layers)
    if options.layout == "onnx" and manifest.branch:  # small graphs that read the same weights
        ir.save(without_branch(ir.load(work / LAYOUT.decoder)), work / LAYOUT.answering)
    if options.layout == "onnx":  # and a way back
        for name, data in bare.items():
            if data != (work / LAYOUT.graph(name)).read_bytes():
                write_atomic(work / LAYOUT.base_graph(name), data)
    require_movement(work, manifest, place(adapters))
    require_response(work, manifest, place(adapters))
    return Written(
        manifest,
        tuple(adapters),
        plan.adapters if options.mode == "fold" else (),
        fitted,
        OnnxVLM(work, base, vlm.inputs, options.providers, bare, opened=False),
        open_export(plan, vlm, work, manifest),
        standing,
    )


def _standing(plan: Plan, vlm: VLM, work: Path, base: ExportManifest) -> Standing:
    """The weights that the adapters were fitted on.

    Raises:
        WrongBase: they are others than those of the base graphs.
    """
    fitted = [adapter.info for adapter in plan.adapters]
    if weights_of(fitted) is None:
        return OWN_WEIGHTS
    if not plan.options.allow_wrong_base:
        require_graph_weights(fitted, base, "the base graphs" if plan.options.base_onnx else "a new export")
    with vlm.in_memory():
        return GraphBase(work, base).standing(vlm)


def open_export(
    plan: Plan, vlm: VLM, work: Path, manifest: ExportManifest, inputs: InputProcessor | None = None
) -> OnnxVLM:
    """The unfinished folder ``work`` under the plan's providers, by default with the model's own processor; its graphs
    are opened when they are run."""
    index = vlm.index if manifest.retrieval and manifest.retrieval.external else None
    return OnnxVLM(work, manifest, inputs or vlm.inputs, plan.options.providers, index=index, opened=False)


def _bake(
    plan: Plan, work: Path, base: ExportManifest, adapters: Sequence[Adapter], layers: Sequence[LayerUpdate]
) -> ExportManifest:
    options = plan.options
    return adapt(work, base, adapters, layers, mode=options.mode, enforce=options.enforce, gate_state=plan.gate_state)


def _write_base(plan: Plan, vlm: VLM, work: Path, say: Say) -> ExportManifest:
    """Put base graphs into ``work``: the given ones after checking them, or fresh ones."""
    folder, precision = plan.options.base_onnx, plan.options.precision
    if folder is None:
        return write_own(vlm, work, precision, say, plan.options.providers, plan.options)
    if not (folder / LAYOUT.manifest).is_file():
        return import_graphs(vlm, folder, work, precision, say, allow_wrong_base=plan.options.allow_wrong_base)
    manifest = read_manifest(folder)
    require_same_base(folder, manifest.base.fingerprint, vlm.fingerprint, str(vlm.path))
    copy_base(folder, work, manifest)
    return manifest


def attends_in_one_node(precision: Precision, providers: Sequence[str]) -> bool:
    """Whether the first provider's ``GroupQueryAttention`` takes the graph's floats: all take those of 16 bits, only
    the CPU's those of 32."""
    return precision == "fp16" or providers[0] == CPU[0]


def write_own(
    vlm: VLM,
    work: Path,
    precision: Precision,
    say: Say,
    providers: Sequence[str] = CPU,
    int4: Int4Options | None = None,
) -> ExportManifest:
    """Export the unmodified graphs into the folder ``work``, for ``providers``.

    Raises:
        UsageError: int8, which is read from others' graphs only.
    """
    if precision == "int8":
        raise UsageError(
            "safetykit does not quantise to int8.", "Pass --precision int4, or an int8 decoder with --base-onnx."
        )
    return write_base(vlm, work, precision, say, fused=attends_in_one_node(precision, providers), int4=int4)
