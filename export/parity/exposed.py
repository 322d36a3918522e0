"""Looking inside an adapted graph: what went into each op and what came out.

A throwaway copy of the graph gives these values as outputs, so that two questions are answered on the
very graph that ships: does every intervention change something, and does it keep its op's invariant?
A detector changes nothing: of it is asked whether its risk depends on what the model is fed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...adapters.errors import UsageError
from ...adapters.ops.gating import HeldGate, decides
from ...adapters.ops.op import Corrector, Detector, Observer
from ...toolkit.families import family_or_any
from ...toolkit.model.pretrained import config_of
from ..base.reading import read_graph
from ..manifest import ExportManifest, Graph
from ..names import ATTENTION_MASK, DOMAIN, INPUTS_EMBEDS, LOGITS, OP, PIXEL_VALUES, PRESENT, RISK, VISION_MASK
from ..runtime.binding import Session
from ..runtime.sessions import CPU, open_session
from ..surgery.bake import Placed
from ..surgery.taps import graph_of
from .gap import Gap

# Magnitudes of random inputs: outliers of this size occur in large models, gates of both signs open.
SCALES = (1.0, 30.0, 1000.0)
_BATCH, _SEQUENCE, _PAST = 3, 6, 4
_SINGLES = 16  # rows of single tokens, which are all that ops of the answer see: of few, gates and scopes may take none


@dataclass(frozen=True)
class Seen:
    """What one intervention saw in one run.

    Attributes:
        before, after: hidden state [batch, sequence, d] in the graph's dtype; after a detector its risk [batch].
        scope: [batch, sequence, 1]; 1 where the op applies. For a detector the past length.
        runtime: the op's per-call tensors by name; for a held gate ``decides`` and ``held`` as well, and ``earlier``
            where it reads further sites.
    """

    before: np.ndarray
    after: np.ndarray
    scope: np.ndarray
    runtime: Mapping[str, np.ndarray]


class ExposedGraph:
    """One adapted graph with the inside of its interventions as outputs."""

    def __init__(
        self,
        folder: Path,
        manifest: ExportManifest,
        name: Graph,
        placed: list[Placed],
        *,
        forced_open: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        providers: Sequence[str] = CPU,
    ) -> None:
        """``overrides`` are fed on every run, instead of the parameters that the graph holds."""
        self.placed = [one for one in placed if graph_of(one.item.site) == name]
        self.by_index = {one.index: one for one in self.placed}
        path = folder / manifest.graph_file(name)
        model = read_graph(path)
        if forced_open:
            self._open_gates(model)
        nodes = {node.name: node for node in model.graph if node.domain == DOMAIN}
        parameters = {str(value.name) for value in model.graph.inputs}
        present = {value.name for value in model.graph.outputs}
        self._names: dict[int, tuple[str, ...]] = {}
        for one in self.placed:
            if (node := nodes.get(one.name(OP))) is None:
                continue  # not in the graph: `run` then says nothing about it
            wanted = [node.inputs[0], node.outputs[0], node.inputs[1]]
            wanted += node.inputs[2 : 2 + len(_given(one))]
            values = [value for value in wanted if value is not None]
            for value in values:
                if value.name not in present and not value.is_graph_input():
                    model.graph.outputs.append(value)
                    present.add(value.name)
            self._names[one.index] = tuple(str(value.name) for value in values)
        _without_answers(model, {name for names in self._names.values() for name in names})
        data = ir.serde.serialize_model(model).SerializeToString()
        self._session = Session(open_session(data, providers, data_folder=path.parent))
        self._session.override({key: value for key, value in (overrides or {}).items() if key in parameters})
        self.inputs = self._session.get_inputs()
        config = config_of(folder)
        family = family_or_any(config)
        self.pictures = family.vision_example(config) if name == "vision_encoder" else {}
        self.further = {one.name: one for one in family.decoder_inputs(config)}

    def _open_gates(self, model: ir.Model) -> None:
        for one in self.placed:
            op = one.item.make_op()
            for param, number in (op.forced_open() if isinstance(op, Corrector) else {}).items():
                value = model.graph.initializers[one.name(param)]
                assert value.shape is not None
                value.const_value = ir.tensor(np.full(value.shape.numpy(), number, np.float32), name=value.name)

    def risk(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output ``risk_score`` [batch]."""
        return self._session.run([RISK], dict(feeds))[0]

    def extras(self, feeds: Mapping[str, np.ndarray], index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The hidden state that an op with outputs of its own read in a run, and these."""
        names = self.by_index[index].item.make_op().outputs
        before, *found = self._session.run([self._names[index][0], *names], dict(feeds))
        return before, dict(zip(names, found, strict=True))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[int, Seen]:
        """Run once; what each intervention saw, by its index. One that the graph lacks is left out."""
        if not self._names:
            return {}
        wanted = sorted({name for names in self._names.values() for name in names if name not in feeds})
        values = dict(zip(wanted, self._session.run(wanted, dict(feeds)), strict=True)) | dict(feeds)
        seen = {}
        for index, names in self._names.items():
            one = self.by_index[index]
            before, after, scope, *given = (values[name] for name in names)
            runtime = dict(zip(_given(one), given, strict=True))
            runtime |= {name: values[one.name(name)] for name in one.item.make_op().runtime_inputs}
            seen[index] = Seen(before, after, scope, runtime)
        return seen


def _given(one: Placed) -> tuple[str, ...]:
    """What a node takes between its mask and its per-call tensors."""
    gate = ("decides", "held") if one.item.holds else ()
    return (*gate, "earlier") if one.item.reads else gate


def _without_answers(model: ir.Model, wanted: Collection[str]) -> None:
    """Take away what only logits and caches need that are not ``wanted``: ONNX Runtime runs all that a graph holds."""
    graph = model.graph
    kept = [
        one
        for one in graph.outputs
        if str(one.name) in wanted or not (one.name == LOGITS or str(one.name).startswith(PRESENT))
    ]
    if kept:
        graph.outputs.clear()
        graph.outputs.extend(kept)
        RemoveUnusedNodesPass()(model)


def probes(graph: ExposedGraph, manifest: ExportManifest, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Random inputs of several magnitudes, text and picture tokens mixed: prompts, further tokens, and single ones."""
    random = np.random.default_rng(seed)
    whole = manifest.foreign is not None and not manifest.foreign.continues
    for scale in SCALES:
        for past, new in ((0, _SEQUENCE), (_PAST, 1 if whole else _SEQUENCE), (_PAST, 1)):
            yield _probe(graph, manifest, random, scale, past, new)


def _probe(
    graph: ExposedGraph, manifest: ExportManifest, random: np.random.Generator, scale: float, past: int, new: int
) -> dict[str, np.ndarray]:
    alone = past > 0 and new > 1  # GroupQueryAttention continues a prompt by several tokens for one row only
    batch = 1 if alone else _SINGLES if past else _BATCH
    sizes = {"batch": batch, "batch_size": batch, "sequence": new, "past_sequence": past, "total": past + new}
    feeds: dict[str, np.ndarray] = {}
    for value in graph.inputs:
        dtype = np.float16 if value.type == "tensor(float16)" else np.float32
        if value.name in graph.pictures and value.name != PIXEL_VALUES:
            feeds[value.name] = graph.pictures[value.name]
            continue
        if value.name in graph.further:
            feeds[value.name] = graph.further[value.name].plausible(sizes, dtype)
            continue
        known = graph.pictures[value.name].shape if value.name in graph.pictures else value.shape
        shape = [sizes[size] if isinstance(size, str) else size for size in known]
        if value.name == ATTENTION_MASK:
            feeds[value.name] = np.ones(shape, np.int64)
        elif value.name == VISION_MASK:
            feeds[value.name] = random.random(shape) < 0.5
        else:
            size = scale if value.name in (INPUTS_EMBEDS, PIXEL_VALUES) else 1.0
            feeds[value.name] = (random.standard_normal(shape) * size).astype(dtype)
    return feeds


def require_movement(folder: Path, manifest: ExportManifest, placed: list[Placed]) -> None:
    """Refuse a bake in which some intervention changes nothing on any probe, or a risk depends on nothing.

    A gate may rightly stay closed on random states, so what has not moved is tried again with its gate
    forced open.

    Raises:
        UsageError: naming the intervention and its site, or the detector.
    """
    correctors = [one for one in placed if isinstance(one.item.make_op(), Corrector)]
    for name in sorted({graph_of(one.item.site) for one in correctors}):
        still = [one for one in correctors if graph_of(one.item.site) == name]
        for forced_open in (False, True):
            if still:
                still = _unmoved(ExposedGraph(folder, manifest, name, placed, forced_open=forced_open), manifest, still)
        for one in still:
            raise UsageError(
                f"Intervention {one.index} ({one.item.op} at {one.item.site}, scope {one.item.scope}, phase "
                f"{one.item.phase}) changes nothing on any probe.",
                "Its parameters may be zero; fit the adapter again.",
            )
    if manifest.detector is not None:
        graph = ExposedGraph(folder, manifest, "decoder", [])
        risks = np.concatenate([graph.risk(feeds) for feeds in probes(graph, manifest)])
        if np.unique(risks[np.isfinite(risks)]).size < 2:
            raise UsageError(
                "The detector's risk is the same whatever the model is fed.",
                "Its parameters may be zero; fit the adapter again.",
            )


def _unmoved(graph: ExposedGraph, manifest: ExportManifest, wanted: list[Placed]) -> list[Placed]:
    still = {one.index: one for one in wanted}
    for feeds in probes(graph, manifest):
        for index, seen in graph.run(feeds).items():
            if index in still and (np.isfinite(seen.after) & (seen.before != seen.after)).any():
                del still[index]
        if not still:
            break
    return list(still.values())


def check_ops(
    folder: Path,
    manifest: ExportManifest,
    placed: list[Placed],
    *,
    overrides: Mapping[str, np.ndarray] | None = None,
    providers: Sequence[str] = CPU,
) -> Iterator[tuple[Placed, Gap, Gap | None]]:
    """Each intervention as the graph computes it, on random inputs of several magnitudes.

    Args:
        overrides: parameters that were swapped in.

    Yields:
        The intervention; the error of its result against the op's PyTorch code on the same hidden state
        (NaN if the graph lacks it); and how far its op's invariant is violated (None: nothing is
        guaranteed). Both are shares of the hidden state's size, the largest over all probes. The result of a
        detector is its risk, whose error is absolute.
    """
    placed = [one for one in placed if not isinstance(one.item.make_op(), Observer)]  # see export.retrieval
    for name in sorted({graph_of(one.item.site) for one in placed}):
        graph = ExposedGraph(folder, manifest, name, placed, overrides=overrides, providers=providers)
        op_gaps: dict[int, Gap] = {}
        invariants: dict[int, Gap] = {}
        for feeds in probes(graph, manifest):
            for index, seen in graph.run(feeds).items():
                op_gap, violated = _judge(graph.by_index[index], seen)
                op_gaps[index] = op_gaps[index].join(op_gap) if index in op_gaps else op_gap
                if violated is not None:
                    invariants[index] = invariants[index].join(violated) if index in invariants else violated
        for one in graph.placed:
            yield one, op_gaps.get(one.index, Gap(float("nan"), 0.0, 0)), invariants.get(one.index)


def _judge(one: Placed, seen: Seen) -> tuple[Gap, Gap | None]:
    op = one.item.make_op()
    runtime = {name: torch.from_numpy(array) for name, array in seen.runtime.items()}
    if isinstance(op, Detector):
        if not decides(int(seen.scope), seen.before.shape[1]):  # past the prompt
            return Gap(0.0 if np.isnan(seen.after).all() else float("nan"), 0.0, 0), None
        expected = op(torch.from_numpy(seen.before), **runtime, **one.item.tensors)
        return Gap.between(expected.numpy(), seen.after), None
    assert isinstance(op, Corrector)
    before, after, scope = (torch.from_numpy(array) for array in (seen.before, seen.after, seen.scope))
    given = runtime | dict(one.item.tensors)
    held = one.item.gated_op()
    if isinstance(held, HeldGate):
        margin = held.margin(before, **given)
        expected, *_ = held(before, scope, **given)
        error = held.op.kept(before, after, scope, margin, **one.item.tensors)
    else:
        expected, *_ = op(before, scope, **given)
        error = op.invariant(before, after, scope, **given)
    gap = Gap.between(expected.float().numpy(), seen.after).relative()
    return gap, None if error is None else Gap(float(error), 1.0, seen.after.size)
