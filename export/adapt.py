"""Turning a base folder into an adapted one: only the small graph files change.

The weights files stay byte for byte; parameters lie beside them in ``<graph>.adapter.data``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from ..adapters.adapter import Adapter
from ..adapters.errors import UsageError
from ..adapters.files import CONFIGURATION_FILES
from .bake import Placed, bake
from .base import graph_info
from .layout import GRAPHS, LAYOUT, ExportManifest, Graph, InterventionInfo, write_manifest
from .taps import graph_of

_INLINE_BYTES = 256  # as in the base graphs: shapes and scalars must stay readable without the data file


def place(adapters: Sequence[Adapter]) -> list[Placed]:
    """Number the interventions of all adapters, in order."""
    items = [item for adapter in adapters for item in adapter.interventions]
    return [Placed(index, item) for index, item in enumerate(items)]


def adapt(folder: Path, base: ExportManifest, adapters: Sequence[Adapter]) -> ExportManifest:
    """Bake ``adapters`` into the base graphs in ``folder``.

    Args:
        base: the manifest of the base graphs.

    Returns:
        The new manifest, as written.

    Raises:
        UsageError: no adapter, or an intervention that can never act.
        UnsupportedGraph: a graph is adapted already or is not understood.
    """
    placed = place(adapters)
    if not placed:
        raise UsageError("There is nothing to bake: no intervention was given.", "Pass at least one adapter.")
    graphs = dict(base.graphs)
    for name in GRAPHS:
        if mine := [one for one in placed if graph_of(one.item.site) == name]:
            model = bake(ir.load(folder / LAYOUT.graph(name)), name, mine)
            _save(model, folder, name)
            graphs[name] = graph_info(model)
    changes = {
        "mode": "bake",
        "graphs": graphs,
        "adapters": tuple(adapter.info for adapter in adapters),
        "interventions": tuple(_describe(one, adapters) for one in placed),
    }
    return write_manifest(base.model_copy(update=changes), folder)


def copy_base(base: Path, folder: Path, manifest: ExportManifest) -> None:
    """Copy graphs, weights and configuration of a base folder.

    Copies, not links: ONNX tools refuse external data with more than one hard link, as a possible attack.
    """
    names = {LAYOUT.graph(name) for name in GRAPHS} | {LAYOUT.data(name) for name in GRAPHS} | set(CONFIGURATION_FILES)
    for name in sorted(names & set(manifest.files)):
        shutil.copyfile(base / name, folder / name)


def _save(model: ir.Model, folder: Path, name: Graph) -> None:
    values = [
        value
        for value in model.graph.initializers.values()
        if not isinstance(value.const_value, ir.ExternalTensor)
        and str(value.name).startswith("safetykit.")
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
        extras=op.extras,
        runtime_inputs=op.runtime_inputs,
    )
