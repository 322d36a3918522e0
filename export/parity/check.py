"""Parity: one report, one table of tolerances, one gate.

Compared are, between PyTorch with hooks and ONNX Runtime:

1. logits at all unpadded prompt positions and at each cached step, teacher-forced with the same
   tokens; single requests and padded batches, with pictures and without;
2. the same with the adapter off, between the bare PyTorch model and the base graphs; and, where adapters were
   folded into weights, with the adapters as hooks;
3. scores the ops give at prefill, and at every step whether gates that act in the answer are open: a gate whose margin
   is within what passes for a score may differ, every other one that does counts;
4. each op inside the graph against its PyTorch code, on its own inputs at several magnitudes, and
   the op's invariant where it has one (this also holds for quantised bases);
5. a detector's risk, the log-odds of harm, end to end; and what the graph states and enforces: threshold, refusal,
   and the forced logits of refused rows, which must be equal;
6. decisions over evaluation records: what an answer amounts to, whether each gate opened and whether the detector
   refused; where weights are rounded, records whose decision the unmodified model flips too are not held against the
   adapters, and counted apart;
7. the folder arranged for another runtime against what was compared before;
8. for quantised graphs, whose weights are others: all of the above against PyTorch with the graph's own weights (see
   :mod:`.held`), the drift from the checkpoint beside it, and the graph with its ops bypassed against the base graph,
   bit for bit; the last for base graphs made elsewhere too.

An error passes when it is at most ``absolute + relative · (largest reference magnitude)``; for a risk that
magnitude counts as 1 at least. The table is in :mod:`.tolerances`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.manifest import DetectorInfo
from ...adapters.ops.op import Detector
from ...toolkit.model.asking import request_of
from ..base.fitted_on import weights_of
from ..base.reading import read_graph
from ..names import THRESHOLD, TOKEN, own
from ..runtime.onnx_vlm import OnnxVLM
from ..surgery.adapt import place
from ..surgery.detector import StatedDetector, stated_detector
from .bypass import check_bypass
from .compare import compare_recorded, compare_scores, parting_margin
from .exposed import check_ops
from .gap import Gap
from .reference import Against, Recording, record_reference
from .report import Check, Flip, FlipCounts, ParityReport, attributed, find_flips, judged, judged_flips
from .retrieval_checks import check_retrieval
from .rounding import own_rounding
from .tolerances import EXACT, Tolerance, Tolerances, tolerances_of

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM


_ALONE = 8  # requests that PyTorch's own rounding is measured on


def check_parity(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    adapters: Sequence[Adapter],
    against: Against | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    **given: Any,
) -> ParityReport:
    """Compare an export with the model and adapters it was made from.

    A ``vlm`` without weights has them while PyTorch is run, and never while sessions are open that were not before.

    Args:
        against: see :class:`Against`; its fields can be given as keywords too, which win.
        progress: called with the name of each step as it starts.

    PyTorch computes in the type that ``vlm`` computes in: a narrow one widens the tolerances. With
    ``vlm.computing(torch.float32)`` around it, a model in bfloat16 is compared by its weights alone.

    Returns:
        The report; call :meth:`ParityReport.require` for the gate.

    Raises:
        WrongBase: an adapter was fitted on other rounded weights than the export's.
    """
    compared = replace(against or Against(), **given)
    with TemporaryDirectory(prefix="safetykit-parity-") as folder:
        with vlm.in_memory():
            recording = record_reference(vlm, onnx_vlm, adapters, compared, Path(folder), progress)
        return compare_graphs(recording, vlm, onnx_vlm, adapters, compared, progress=progress)


def compare_graphs(
    recording: Recording,
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    adapters: Sequence[Adapter],
    against: Against,
    *,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """The second half of :func:`check_parity`: what was recorded of PyTorch, and the graphs.

    Args:
        recording: see :func:`~safetykit.export.parity.reference.record_reference`.
        vlm: run again only where something failed or flipped, to say how near it was.
    """
    return _Comparison(recording, vlm, onnx_vlm, adapters, against, progress or (lambda _: None)).report()


@dataclass(frozen=True)
class _Comparison:
    """One run of all checks."""

    recording: Recording
    vlm: VLM
    onnx_vlm: OnnxVLM
    adapters: Sequence[Adapter]
    against: Against
    say: Callable[[str], None]

    def report(self) -> ParityReport:
        against = self.against
        with self.onnx_vlm.in_use():
            table = self._tolerances()
        checks = [*self._numbers(table), *self._ops(table), *self._retrieval(table), *self._statement()]
        flips: list[Flip] = []
        counts: FlipCounts | None = None
        if against.decisions is not None:
            flips = find_flips(*against.decisions)
            if against.unmodified is not None:
                flips, counts = attributed(flips, find_flips(*against.unmodified), len(against.decisions[0]))
            checks.append(judged_flips(flips, len(against.decisions[0]), table.flips))
            flips = self._with_margins(flips)
        return ParityReport(
            precision=self.onnx_vlm.manifest.precision,
            reference=self.recording.ran,
            providers=self.onnx_vlm.providers,
            steps=against.steps,
            rows=against.rows,
            tolerances=table,
            checks=tuple(checks),
            flips=tuple(flips),
            flipped=counts,
            warnings=(*_warnings(table, compared=against.decisions is not None), *self._irreproducible(table, checks)),
            passed=all(check.passed for check in checks),
        )

    def _irreproducible(self, table: Tolerances, checks: Sequence[Check]) -> Iterator[str]:
        """Says of logits that fail in fp32 that PyTorch's own rounding is larger than what would pass, where it is."""
        failed = {check.case for check in checks if not check.passed and check.kind in ("logits", "adapter-off")}
        asked = [request for case, batch in self.recording.requests.items() if case in failed for request in batch]
        if self.onnx_vlm.manifest.precision != "fp32" or not asked:
            return
        with self.vlm.in_memory():
            gap = own_rounding(self.vlm, asked[:_ALONE])
        if gap is not None and not table.logits.passes(gap.error, gap.scale):
            yield (
                f"PyTorch's own float32 logits of this model are {gap.relative().error:.1g} of the largest one away "
                f"from float64, and {table.logits.relative:.1g} passes: rounding alone moves them that far. Weights do "
                "that which attention is saturated by, such as those of a LoRA adapter that was scaled up."
            )

    def _tolerances(self) -> Tolerances:
        table, flips = tolerances_of(self.onnx_vlm, self.vlm.dtype), self.against.max_flips
        return table if flips is None else table.model_copy(update={"flips": flips})

    def _numbers(self, table: Tolerances) -> Iterator[Check]:
        """Logits, risks and scores, end to end, the drift of rounded weights, and the decoder without its ops."""
        base = self.against.base
        if self.recording.weights.exact:
            yield from self._end_to_end(table)
        if table.drift is not None:
            yield from self._drift(table.drift)
        bypassed = base is not None and base is not self.onnx_vlm and isinstance(base.decoder_source, bytes)
        if bypassed and _bypassable(self.onnx_vlm):
            gap = check_bypass(self.onnx_vlm.path, self.onnx_vlm.manifest.graph_file("decoder"), base.decoder_source)
            yield judged("adapter-off", "decoder with its ops bypassed", gap, EXACT)

    def _end_to_end(self, table: Tolerances) -> Iterator[Check]:
        """PyTorch and the export; the adapters before folding; and the bare model and the base graphs."""
        recording = self.recording
        export, base = recording.weights.computing_exactly(self.onnx_vlm, self.against.base, self.vlm.index)
        with export.in_use():
            for case, recorded in recording.adapted.items():
                self.say(f"parity: {case}")
                gap = compare_recorded(recorded, export, recording.requests[case])
                yield judged("logits", case, gap.logits, table.logits)
                if gap.forced is not None:
                    yield judged("risk", f"{case}, forced logits", gap.forced, EXACT)
                if (risk := gap.scores.pop("risk", None)) is not None:
                    yield judged("risk", case, risk.at_least(1), table.risk)
                for name, found in gap.scores.items():
                    yield judged("scores", f"{case}, {name}", found, table.scores)
                for name, (ours, theirs) in gap.gates.items():
                    unsure = table.scores.limit(recorded.scores.sizes.get(name, 1.0))
                    yield judged("gates", f"{case}, {name}", _other_gates(ours, theirs, unsure), EXACT)
            for case, recorded in recording.unfolded.items():
                self.say(f"parity, not folded: {case}")
                found = compare_recorded(recorded, export, recording.requests[case]).logits
                yield judged("fold", case, found, table.logits)
        with base.in_use() if base is not None else nullcontext():
            for case, recorded in recording.bare.items():
                assert base is not None
                self.say(f"parity, adapter off: {case}")
                found = compare_recorded(recorded, base, recording.requests[case]).logits
                yield judged("adapter-off", case, found, table.logits)

    def _drift(self, tolerance: Tolerance) -> Iterator[Check]:
        """How far rounded weights take the base graphs from the checkpoint, and a detector's risk with them."""
        recording, base = self.recording, self.against.base
        with base.in_use() if base is not None else nullcontext():
            for case, recorded in recording.drifting.items():
                assert base is not None
                self.say(f"drift: {case}")
                found = compare_recorded(recorded, base, recording.requests[case]).logits
                yield judged("drift", case, found, tolerance)
        with self.onnx_vlm.in_use():
            for case, scores in recording.drifting_risks.items():
                extras = self.onnx_vlm.prefill_requests(recording.requests[case]).extras
                risk = compare_scores(scores, extras)["risk"]
                yield judged("drift", f"{case}, risk", risk.at_least(1), tolerance)

    def _ops(self, table: Tolerances) -> Iterator[Check]:
        """Each op in the graph against its PyTorch code."""
        placed, swapped = place(self.adapters), self.onnx_vlm.swapped
        if placed:
            self.say("parity: ops")
        for one, op, invariant in check_ops(
            self.onnx_vlm.path,
            self.onnx_vlm.manifest,
            placed,
            overrides=swapped.arrays if swapped else None,
            providers=self.onnx_vlm.providers,
        ):
            name = f"{one.index}: {one.item.op} at {one.item.site}"
            if isinstance(one.item.make_op(), Detector):
                yield judged("risk", name, op.at_least(1), table.risk)
                continue
            yield judged("op", name, op, table.op)
            if invariant is not None:
                yield judged("invariant", name, invariant, table.invariant)

    def _retrieval(self, table: Tolerances) -> Iterator[Check]:
        for one, gap in check_retrieval(self.onnx_vlm.path, self.onnx_vlm.manifest, place(self.adapters)):
            yield judged("retrieval", f"{one.index}: {one.item.op} at {one.item.site}", gap, table.scores)

    def _statement(self) -> Iterator[Check]:
        """Whether the graph states and enforces the adapter's detector."""
        manifest = self.onnx_vlm.manifest
        decoder = read_graph(self.onnx_vlm.path / manifest.graph_file("decoder"))
        detector, stated = the_detector(self.adapters), _as_run(self.onnx_vlm, stated_detector(decoder))
        if detector or stated:
            yield _statement_check(detector, stated, manifest.enforce)

    def _with_margins(self, flips: Sequence[Flip]) -> list[Flip]:
        """Outcomes that flipped, with how near the call was."""
        records = {record.id: record for record in self.against.records}
        asked = {
            flip.id: request_of(records[flip.id]) for flip in flips if flip.what == "outcome" and flip.id in records
        }
        if not asked:
            return list(flips)
        tokens, manifest = self.against.max_new_tokens, self.onnx_vlm.manifest
        with (
            self.vlm.in_memory(),
            self.recording.weights.standing(self.vlm, weights_of([adapter.info for adapter in self.adapters])),
            self.vlm.applied(*self.adapters, allow_wrong_base=self.against.allow_wrong_base, enforce=manifest.enforce),
        ):
            ours = {name: self.vlm.generate([request], tokens)[0] for name, request in asked.items()}
        with self.onnx_vlm.in_use():
            margins = {name: parting_margin(ours[name], self.onnx_vlm, asked[name], tokens) for name in asked}
        return [
            flip.model_copy(update={"margin": margins[flip.id]})
            if flip.what == "outcome" and flip.id in asked
            else flip
            for flip in flips
        ]


def _other_gates(ours: np.ndarray, theirs: np.ndarray, unsure: float) -> Gap:
    """How many gates are open in one and closed in the other, among those whose margin is not within ``unsure``."""
    other = (np.abs(ours) > unsure) & ((ours > 0) != (theirs > 0)) | np.isnan(theirs)
    return Gap(float(other.sum()), 1.0, ours.size)


def _warnings(table: Tolerances, *, compared: bool) -> tuple[str, ...]:
    """What a reader must know although everything that was compared has passed."""
    if table.drift is None or compared:
        return ()
    return (
        "No decision was compared: weights are rounded, and how often the export now answers what the model refused, "
        "or refuses what it answered, is not known. Export with records to have it measured.",
    )


def _bypassable(onnx_vlm: OnnxVLM) -> bool:
    """Whether all changes of a decoder that is not our own fp32 or fp16 export can be taken out of the way."""
    manifest = onnx_vlm.manifest
    ours = manifest.foreign is None and manifest.precision in ("fp32", "fp16")
    return not ours and manifest.layout == "onnx" and manifest.mode != "fold" and not _replaced(onnx_vlm)


def _replaced(onnx_vlm: OnnxVLM) -> bool:
    initializers = read_graph(onnx_vlm.path / onnx_vlm.manifest.graph_file("decoder")).graph.initializers
    return any(own(name) in initializers for name in onnx_vlm.manifest.updates)


def _as_run(onnx_vlm: OnnxVLM, stated: StatedDetector | None) -> StatedDetector | None:
    """What holds instead of what the graph states, where another detector was swapped in."""
    if stated is None or onnx_vlm.swapped is None or onnx_vlm.detector is None:
        return stated
    arrays = onnx_vlm.swapped.arrays
    enforced = (float(arrays[THRESHOLD].item()), int(arrays[TOKEN].item())) if stated.enforced else None
    return StatedDetector(onnx_vlm.detector, enforced)


def _statement_check(detector: DetectorInfo | None, stated: StatedDetector | None, enforce: bool) -> Check:
    """Whether threshold, refusal and token are the adapter's, in the metadata and where the graph enforces them."""
    settings = None
    if detector and enforce:
        settings = (float(np.float32(detector.threshold)), detector.refusal_token)
    same = stated is not None and stated.info == detector and stated.enforced == settings
    return judged("risk", "threshold and refusal", Gap(0.0 if same else 1.0, 1.0, 1), EXACT)
