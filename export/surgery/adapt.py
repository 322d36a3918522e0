"""Turning a base folder into an adapted one: only the small graph files change.

The weights files stay byte for byte; parameters lie beside them in ``<graph>.adapter.data``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from ...adapters.artifact.adapter import Adapter, the_branch, the_detector, whole_prompt
from ...adapters.artifact.files import CONFIGURATION_FILES
from ...adapters.artifact.manifest import RetrievalInfo
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import retrieval_of
from ..base.own import graph_info
from ..base.reading import loaded
from ..manifest import (
    GRAPHS,
    LAYOUT,
    BranchInfo,
    ExportManifest,
    Graph,
    InterventionInfo,
    Mode,
    ParameterInfo,
    write_manifest,
)
from ..names import is_own
from .bake import Placed, bake
from .biases import merge_biases
from .detector import detector_state, install_detector
from .fork import fork
from .gates import GateState
from .layer_updates import LayerUpdate
from .lowrank import LowRank, add_terms, split_terms
from .places import mergeable
from .residual import find_residual_stream
from .retrieval import write_captions
from .swappable import describe_parameters, every_update, open_parameters, require_swappable, write_adapter_files
from .taps import graph_of
from .updates import update_graph

_INLINE_BYTES = 256  # as in the base graphs: shapes and scalars must stay readable without the data file


def place(adapters: Sequence[Adapter]) -> list[Placed]:
    """Number the interventions of all adapters, in order."""
    items = [item for adapter in adapters for item in adapter.interventions]
    return [Placed(index, item) for index, item in enumerate(items)]


def adapt(
    folder: Path,
    base: ExportManifest,
    adapters: Sequence[Adapter],
    layers: Sequence[LayerUpdate] = (),
    *,
    mode: Mode = "bake",
    enforce: bool = False,
    gate_state: GateState = "inputs",
) -> ExportManifest:
    """Put ``adapters`` into the base graphs in ``folder``: weights, then interventions, then the branch that runs both.

    Args:
        base: the manifest of the base graphs.
        layers: what the adapters' weight updates come to; see :func:`plan_updates`.
        mode: noted in the manifest.
        enforce: have the decoder force the logits of requests that the detector refuses.
        gate_state: how held gates get their decision back; see :mod:`.gates`.

    Returns:
        The new manifest, as written.

    Raises:
        UsageError: no adapter, an intervention that can never act, two detectors, or none to enforce.
        UnsupportedGraph: a graph is adapted already or is not understood.
    """
    placed, branch, detector = place(adapters), the_branch(adapters), the_detector(adapters)
    state = detector_state(adapters)
    if not placed and branch is None and not layers:
        raise UsageError("There is nothing to bake: no intervention was given.", "Pass at least one adapter.")
    if enforce and detector is None:
        raise UsageError("There is no detector whose refusal could be enforced.", "Give one, or leave out --enforce.")
    swappable = mode == "hot-swap"
    if swappable:
        require_swappable(placed)
    values, terms = split_terms(layers, every_update(adapters)) if swappable else (tuple(layers), ())
    parameters: list[ParameterInfo] = []
    graphs = dict(base.graphs)
    for name in GRAPHS:
        mine = [one for one in placed if graph_of(one.item.site) == name]
        decides = name == "decoder" and detector is not None
        updated = [layer for layer in values if layer.graph == name]
        if not (mine or decides or updated or any(term.layer.graph == name for term in terms)):
            continue
        model = loaded(folder / LAYOUT.graph(name))
        if not swappable:
            updated, terms = _keep_apart(model, updated, adapters)
        update_graph(model, name, updated)
        stream = find_residual_stream(model) if decides and branch else None
        if mine:
            bake(model, name, mine, swappable=swappable, gate_state=gate_state)
        merge_biases(model)
        add_terms(model, name, terms)
        if stream and branch:
            fork(model, stream, branch, mine)
        if decides and detector:
            install_detector(model, detector, state, enforce=enforce)
        if swappable:
            found = describe_parameters(model, name, mine, updated, terms, branch if decides else None)
            open_parameters(model, found)
            parameters += found
        save_adapted(model, folder, name)
        graphs[name] = graph_info(model)
    changes = {
        "mode": mode,
        "graphs": graphs,
        "adapters": tuple(adapter.info for adapter in adapters),
        "interventions": tuple(_describe(one, adapters) for one in placed),
        "parameters": tuple(parameters),
        "gate_state": gate_state if any(one.item.holds for one in placed) else None,
        "updates": tuple(f"{layer.layer}.{leaf}" for layer in layers for leaf in layer.new),
        "branch": _describe_branch(adapters, base.base.n_layers),
        "detector": detector,
        "detector_state": state,
        "whole_prompt": whole_prompt(adapters),
        "enforce": enforce,
        "retrieval": _keep_captions(adapters, folder),
    }
    manifest = base.model_copy(update=changes)
    write_adapter_files(folder, manifest)
    return write_manifest(manifest, folder)


def _keep_apart(
    model: ir.Model, updated: Sequence[LayerUpdate], adapters: Sequence[Adapter]
) -> tuple[list[LayerUpdate], tuple[LowRank, ...]]:
    """Weights that are quantised, or packed with others, stay as they are: low-rank updates of them stand beside them,
    in full precision. Merged into a quantised weight they would be rounded with it, and be another update."""
    values: list[LayerUpdate] = []
    apart: list[LayerUpdate] = []
    for layer in updated:
        (values if mergeable(model.graph, layer) else apart).append(layer)
    others, terms = split_terms(apart, every_update(adapters))
    return [*values, *others], terms


def copy_base(base: Path, folder: Path, manifest: ExportManifest) -> None:
    """Copy graphs, weights and configuration of a base folder.

    Copies, not links: ONNX tools refuse external data with more than one hard link, as a possible attack.
    """
    names = {LAYOUT.graph(name) for name in GRAPHS} | {LAYOUT.data(name) for name in GRAPHS} | set(CONFIGURATION_FILES)
    for name in sorted(names & set(manifest.files)):
        shutil.copyfile(base / name, folder / name)


def save_adapted(model: ir.Model, folder: Path, name: Graph) -> None:
    """Write a graph; what was added to it goes into the adapter's data file, unless it is small."""
    values = [
        value
        for value in model.graph.initializers.values()
        if not isinstance(value.const_value, ir.ExternalTensor)
        and is_own(value.name)
        and value.const_value is not None
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    if values:
        tensors = convert_tensors_to_external(
            [value.const_value for value in values], folder, LAYOUT.adapter_data(name)
        )
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    ir.save(model, folder / LAYOUT.graph(name))


def _describe(one: Placed, adapters: Sequence[Adapter]) -> InterventionInfo:
    owner, first = 0, 0
    while one.index >= first + len(adapters[owner].interventions):
        first += len(adapters[owner].interventions)
        owner += 1
    op = one.item.make_op()
    return InterventionInfo(
        index=one.index,
        adapter=owner,
        op=one.item.op,
        site=str(one.item.site),
        scope=one.item.scope,
        phase=one.item.phase,
        graph=graph_of(one.item.site),
        gate=one.item.gate,
        reads=tuple(map(str, one.item.reads)),
        extras=(*op.extras, *op.outputs),
        runtime_inputs=op.runtime_inputs,
    )


def _describe_branch(adapters: Sequence[Adapter], n_layers: int) -> BranchInfo | None:
    for at, adapter in enumerate(adapters):
        if branch := adapter.branch:
            return BranchInfo(
                adapter=at,
                op=branch.op,
                safety=str(branch.safety),
                fused=str(branch.fused),
                blocks=branch.blocks(n_layers),
            )
    return None


def _keep_captions(adapters: Sequence[Adapter], folder: Path) -> RetrievalInfo | None:
    found = retrieval_of(adapters)
    if found is None:
        return None
    info, texts = found
    if not info.external:
        write_captions(folder, texts)
    return info
