"""Parity: one report, one table of tolerances, one gate.

Compared are, between PyTorch with hooks and ONNX Runtime:

1. logits at all unpadded prompt positions and at each cached step, teacher-forced with the same
   tokens; single requests and padded batches, with pictures and without;
2. the same with the adapter off, between the bare PyTorch model and the base graphs; and, where adapters were
   folded into weights, with the adapters as hooks;
3. scores the ops give at prefill;
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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.manifest import DetectorInfo, GraphWeights
from ...adapters.ops.op import Detector
from ...toolkit.model.requests import Request
from ..base.fitted_on import require_graph_weights, weights_of
from ..base.reading import read_graph
from ..names import THRESHOLD, TOKEN, own
from ..runtime.onnx_vlm import OnnxVLM
from ..surgery.adapt import place
from ..surgery.detector import StatedDetector, stated_detector
from .bypass import check_bypass
from .compare import cached_steps, compare_logits, compare_scores, parity_requests, parting_margin
from .exposed import check_ops
from .gap import Gap
from .held import Comparable, comparable
from .report import Check, Flip, FlipCounts, ParityReport, Reference, attributed, find_flips, judged, judged_flips
from .retrieval_checks import check_retrieval
from .rounding import own_rounding
from .tolerances import EXACT, Tolerance, Tolerances, tolerances_of

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM


_ALONE = 8  # requests that PyTorch's own rounding is measured on


@dataclass(frozen=True)
class Against:
    """What an export is compared with beside the model and its adapters, and how far.

    Attributes:
        unfolded: the adapters as they were before they were folded into weights; they must give the same logits.
        base: the export without adapters, to check that "adapter off" is the bare model; for a base export the
            export itself.
        records: prompts and pictures are taken from here; without any, built-in ones are used.
        decisions: what PyTorch and ONNX Runtime answered to ``records``, in that order.
        unmodified: the same without adapters, where weights are rounded: records that flip here are not the adapters'.
        steps: cached decoding steps that are compared.
        max_new_tokens: with which ``decisions`` were made.
        max_flips: share of ``decisions`` that may flip; by default what the precision's table says.
        allow_wrong_base: the adapters may have been fitted on another model.
    """

    unfolded: Sequence[Adapter] = ()
    base: OnnxVLM | None = None
    records: Sequence[Record] = ()
    decisions: tuple[Sequence[Decision], Sequence[Decision]] | None = None
    unmodified: tuple[Sequence[Decision], Sequence[Decision]] | None = None
    steps: int = field(default_factory=cached_steps)
    max_new_tokens: int = 32
    max_flips: float | None = None
    allow_wrong_base: bool = False


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
    if not compared.allow_wrong_base:
        require_graph_weights([adapter.info for adapter in adapters], onnx_vlm.manifest, str(onnx_vlm.path))
    return _Comparison(vlm, onnx_vlm, adapters, compared, progress or (lambda _: None)).report()


@dataclass(frozen=True)
class _Comparison:
    """One run of all checks."""

    vlm: VLM
    onnx_vlm: OnnxVLM
    adapters: Sequence[Adapter]
    against: Against
    say: Callable[[str], None]

    def report(self) -> ParityReport:
        table, against = self._tolerances(), self.against
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
            reference=_reference(self.vlm),
            providers=self.onnx_vlm.providers,
            steps=against.steps,
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
        asked = [request for case, batch in self._requests().items() if case in failed for request in batch]
        if self.onnx_vlm.manifest.precision != "fp32" or not asked:
            return
        gap = own_rounding(self.vlm, asked[:_ALONE])
        if gap is not None and not table.logits.passes(gap.error, gap.scale):
            yield (
                f"PyTorch's own float32 logits of this model are {gap.relative().error:.1g} of the largest one away "
                f"from float64, and {table.logits.relative:.1g} passes: rounding alone moves them that far. Weights do "
                "that which attention is saturated by, such as those of a LoRA adapter that was scaled up."
            )

    def applied(self, some: Sequence[Adapter]) -> AbstractContextManager[AppliedAdapters]:
        """PyTorch with ``some`` adapters, as the export has them."""
        enforce = self.onnx_vlm.manifest.enforce
        return self.vlm.applied(*some, allow_wrong_base=self.against.allow_wrong_base, enforce=enforce)

    @cached_property
    def _same(self) -> Comparable:
        return comparable(self.vlm, self.onnx_vlm, self.against.base)

    def _standing(self) -> AbstractContextManager[None]:
        """PyTorch with the weights that the adapters were fitted on."""
        return self._same.held(self.vlm, self._on) if self._on is not None else nullcontext()

    @property
    def _on(self) -> GraphWeights | None:
        return weights_of([adapter.info for adapter in self.adapters])

    def _tolerances(self) -> Tolerances:
        table, flips = tolerances_of(self.onnx_vlm, self.vlm.dtype), self.against.max_flips
        return table if flips is None else table.model_copy(update={"flips": flips})

    def _requests(self) -> Mapping[str, Sequence[Request]]:
        decided = self.against.decisions[0] if self.against.decisions else ()
        opened = {item.id for item in decided if max(item.scores.values(), default=-1.0) > 0}
        several = self.vlm.inputs.family.several and self.onnx_vlm.manifest.retrieval is None
        return parity_requests(self.against.records, opened, several=several)

    def _numbers(self, table: Tolerances) -> Iterator[Check]:
        """Logits, risks and scores, end to end, the drift of rounded weights, and the decoder without its ops."""
        requests, base = self._requests(), self.against.base
        same = self._same
        with same.held(self.vlm, self._on):
            if same.exact:
                yield from self._end_to_end(same, requests, table)
        if table.drift is not None:
            yield from self._drift(requests, table.drift, risks=not same.exact)
        bypassed = base is not None and base is not self.onnx_vlm and isinstance(base.decoder_source, bytes)
        if bypassed and _bypassable(self.onnx_vlm):
            gap = check_bypass(self.onnx_vlm.path, self.onnx_vlm.manifest.graph_file("decoder"), base.decoder_source)
            yield judged("adapter-off", "decoder with its ops bypassed", gap, EXACT)

    def _end_to_end(
        self, same: Comparable, requests: Mapping[str, Sequence[Request]], table: Tolerances
    ) -> Iterator[Check]:
        """PyTorch and the export; the bare model and the base graphs; and the adapters before folding."""
        vlm, steps = self.vlm, self.against.steps
        for case, batch in requests.items() if self.against.base is not self.onnx_vlm else ():
            self.say(f"parity: {case}")
            with self.applied(self.adapters) as hooks:
                gap = compare_logits(vlm, same.export, batch, steps, hooks)
                scores = compare_scores(hooks, gap.extras)
            yield judged("logits", case, gap.logits, table.logits)
            if gap.forced is not None:
                yield judged("risk", f"{case}, forced logits", gap.forced, EXACT)
            if (risk := scores.pop("risk", None)) is not None:
                yield judged("risk", case, risk.at_least(1), table.risk)
            for name, found in scores.items():
                yield judged("scores", f"{case}, {name}", found, table.scores)
        for case, batch in requests.items() if same.base is not None else ():
            self.say(f"parity, adapter off: {case}")
            yield judged("adapter-off", case, compare_logits(vlm, same.base, batch, steps).logits, table.logits)
        for case, batch in requests.items() if self.against.unfolded else ():
            self.say(f"parity, not folded: {case}")
            with self.applied(self.against.unfolded) as hooks:
                yield judged("fold", case, compare_logits(vlm, same.export, batch, steps, hooks).logits, table.logits)

    def _drift(
        self, requests: Mapping[str, Sequence[Request]], tolerance: Tolerance, *, risks: bool
    ) -> Iterator[Check]:
        """How far rounded weights take the base graphs from the checkpoint, and a detector's risk with them.

        Args:
            risks: whether risks were not compared otherwise.
        """
        base = self.against.base
        for case, batch in requests.items():
            self.say(f"drift: {case}")
            if base is not None:
                gap = compare_logits(self.vlm, base, batch, self.against.steps)
                yield judged("drift", case, gap.logits, tolerance)
            if risks and self.onnx_vlm.detector is not None:
                with self._standing(), self.applied(self.adapters) as hooks:
                    self.vlm.prefill(batch)
                    found = compare_scores(hooks, self.onnx_vlm.prefill_requests(batch).extras)
                yield judged("drift", f"{case}, risk", found["risk"].at_least(1), tolerance)

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
        found = []
        with self._standing(), self.applied(self.adapters):
            for flip in flips:
                if flip.what == "outcome" and (record := records.get(flip.id)) is not None:
                    request = Request(record.prompt, record.picture())
                    margin = parting_margin(self.vlm, self.onnx_vlm, request, self.against.max_new_tokens)
                    flip = flip.model_copy(update={"margin": margin})
                found.append(flip)
        return found


def _reference(vlm: VLM) -> Reference:
    ran = vlm.ran
    assert ran is not None  # it was compared
    return Reference(device=ran.device, dtype=ran.dtype, weights=vlm.stored_dtype)


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
