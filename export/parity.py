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
   refused;
7. the folder arranged for another runtime against what was compared before;
8. for quantised graphs, whose weights are others: all of the above against PyTorch with the graph's own weights (see
   :mod:`.held`), the drift from the checkpoint beside it, and the graph with its ops bypassed against the base graph,
   bit for bit; the last for base graphs made elsewhere too.

An error passes when it is at most ``absolute + relative · (largest reference magnitude)``; for a risk that
magnitude counts as 1 at least. The table is in :mod:`.tolerances`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from ..adapters.adapter import Adapter, the_detector
from ..adapters.errors import InvalidArtifact, ParityFailed, UsageError
from ..adapters.files import write_atomic
from ..adapters.manifest import DetectorInfo, Strict, canonical_json
from ..toolkit.inputs import Request
from .adapt import place
from .bypass import check_bypass
from .compare import Gap, compare_logits, compare_scores, parity_requests, parting_margin
from .detector import StatedDetector, stated_detector
from .exposed import check_ops
from .held import Comparable, comparable
from .layout import Precision
from .metadata import THRESHOLD, TOKEN
from .retrieval_checks import check_retrieval
from .runtime import OnnxVLM
from .tolerances import EXACT, Tolerance, Tolerances, tolerances_of

if TYPE_CHECKING:
    from ..toolkit.evaluate import Decision
    from ..toolkit.hooks import AppliedAdapters
    from ..toolkit.records import Record
    from ..toolkit.vlm import VLM


class Check(Strict):
    """One comparison.

    Attributes:
        kind: which of the comparisons above.
        case: what was compared, for a reader.
        count: numbers, probes or records compared.
        error: largest absolute error; for ``op`` and ``invariant`` a share of the hidden state's size; for
            ``decisions`` the number of records that flipped.
        scale: largest magnitude of the reference.
        limit: largest error that would have passed.
    """

    kind: Literal[
        "logits", "adapter-off", "scores", "op", "invariant", "risk",
        "retrieval", "fold", "swap", "layout", "drift", "decisions",
    ]  # fmt: skip
    case: str
    count: int
    error: float
    scale: float
    limit: float
    passed: bool


class Flip(Strict):
    """A decision that differs, with how near the call was.

    Attributes:
        what: ``outcome``, or the name of a gate's score.
        margin: for a gate the smaller distance of the two scores from 0; for an outcome the gap of the
            two best logits where the answers part (None when they do not part on a second run).
    """

    id: str
    what: str
    pytorch: str
    onnx: str
    margin: float | None


class ParityReport(Strict):
    """The verdict and everything it rests on."""

    schema_version: Literal[1] = 1
    precision: Precision
    providers: tuple[str, ...]
    steps: int
    tolerances: Tolerances
    checks: tuple[Check, ...]
    flips: tuple[Flip, ...] = ()
    passed: bool

    def worst(self, kind: str) -> float:
        """Largest error among the checks of a kind; 0 when there are none."""
        return max((check.error for check in self.checks if check.kind == kind), default=0.0)

    def require(self) -> None:
        """The gate.

        Raises:
            ParityFailed: some check failed; the first is named with its figures.
        """
        failed = [check for check in self.checks if not check.passed]
        if failed:
            first = failed[0]
            raise ParityFailed(
                f"{len(failed)} of {len(self.checks)} parity checks failed; first {first.kind} ({first.case}): "
                f"error {first.error:.3g}, limit {first.limit:.3g}.",
                "The exported model does not do what the PyTorch model does; nothing was written.",
            )

    def with_layout(self, layout: str, gap: Gap) -> ParityReport:
        """The same with what became of the graphs in another layout."""
        checks = (*self.checks, _check("layout", layout, gap, self.tolerances.logits))
        return self.model_copy(update={"checks": checks, "passed": all(check.passed for check in checks)})

    def with_swap(self, gap: Gap) -> ParityReport:
        """The same with how far the export's own logits are from what they were before a swap: not at all."""
        checks = (*self.checks, _check("swap", "there and back", gap, EXACT))
        return self.model_copy(update={"checks": checks, "passed": all(check.passed for check in checks)})

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_atomic(path, canonical_json(self.model_dump(mode="json")))

    @classmethod
    def read(cls, path: Path) -> ParityReport:
        """Read what :meth:`write` wrote.

        Raises:
            InvalidArtifact: missing or not a parity report.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArtifact(f"{path} is no parity report ({type(error).__name__}).", "Export again.") from None


def check_parity(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    adapters: Sequence[Adapter],
    *,
    unfolded: Sequence[Adapter] = (),
    base: OnnxVLM | None = None,
    records: Sequence[Record] = (),
    decisions: tuple[Sequence[Decision], Sequence[Decision]] | None = None,
    steps: int = 32,
    max_new_tokens: int = 32,
    allow_wrong_base: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare an export with the model and adapters it was made from.

    Args:
        unfolded: the adapters as they were before they were folded into weights; they must give the same logits.
        base: the export without adapters, to check that "adapter off" is the bare model.
        records: prompts and pictures are taken from here; without any, built-in ones are used.
        decisions: what PyTorch and ONNX Runtime answered to ``records``, in that order.
        steps: cached decoding steps that are compared.
        max_new_tokens: with which ``decisions`` were made.

    Returns:
        The report; call :meth:`ParityReport.require` for the gate.
    """
    say = progress or (lambda _: None)
    table = tolerances_of(onnx_vlm)
    opened = {item.id for item in decisions[0] if max(item.scores.values(), default=-1.0) > 0} if decisions else set()
    several = vlm.inputs.family.several and onnx_vlm.manifest.retrieval is None
    requests = parity_requests(records, opened, several=several)
    enforce = onnx_vlm.manifest.enforce
    same = comparable(vlm, onnx_vlm, base)

    def applied(some: Sequence[Adapter]) -> AbstractContextManager[AppliedAdapters]:
        return vlm.applied(*some, allow_wrong_base=allow_wrong_base, enforce=enforce)

    checks: list[Check] = []
    with same.held(vlm):
        if same.exact:
            checks += _end_to_end(vlm, same, requests, steps, table, adapters, unfolded, applied, say)
    if table.drift is not None:
        exact = same.exact
        checks += _drift(vlm, onnx_vlm, base, requests, steps, table.drift, lambda: applied(adapters), say, risks=not exact)
    if base is not None and isinstance(base.decoder_source, bytes) and _bypassable(onnx_vlm):
        gap = check_bypass(onnx_vlm.path, onnx_vlm.manifest.graph_file("decoder"), base.decoder_source)
        checks.append(_check("adapter-off", "decoder with its ops bypassed", gap, EXACT))
    say("parity: ops")
    for one, op, invariant in check_ops(
        onnx_vlm.path,
        onnx_vlm.manifest,
        place(adapters),
        overrides=onnx_vlm.swapped.arrays if onnx_vlm.swapped else None,
        providers=onnx_vlm.providers,
    ):
        name = f"{one.index}: {one.item.op} at {one.item.site}"
        if one.item.make_op().detects:
            checks.append(_check("risk", name, op.at_least(1), table.risk))
            continue
        checks.append(_check("op", name, op, table.op))
        if invariant is not None:
            checks.append(_check("invariant", name, invariant, table.invariant))
    checks += [
        _check("retrieval", f"{one.index}: {one.item.op} at {one.item.site}", gap, table.scores)
        for one, gap in check_retrieval(onnx_vlm.path, onnx_vlm.manifest, place(adapters))
    ]
    decoder = ir.load(onnx_vlm.path / onnx_vlm.manifest.graph_file("decoder"))
    detector, stated = the_detector(adapters), _as_run(onnx_vlm, stated_detector(decoder))
    if detector or stated:
        checks.append(_statement_check(detector, stated, enforce))
    flips: list[Flip] = []
    if decisions is not None:
        flips = find_flips(*decisions)
        checks.append(_flip_check(flips, len(decisions[0]), table.flips))
        pictured = {record.id: record for record in records}
        with vlm.applied(*adapters, allow_wrong_base=allow_wrong_base, enforce=enforce):
            flips = [_with_margin(flip, vlm, onnx_vlm, pictured.get(flip.id), max_new_tokens) for flip in flips]
    return ParityReport(
        precision=onnx_vlm.manifest.precision,
        providers=onnx_vlm.providers,
        steps=steps,
        tolerances=table,
        checks=tuple(checks),
        flips=tuple(flips),
        passed=all(check.passed for check in checks),
    )


def _end_to_end(
    vlm: VLM,
    same: Comparable,
    requests: Mapping[str, Sequence[Request]],
    steps: int,
    table: Tolerances,
    adapters: Sequence[Adapter],
    unfolded: Sequence[Adapter],
    applied: Callable[[Sequence[Adapter]], AbstractContextManager[AppliedAdapters]],
    say: Callable[[str], None],
) -> Iterator[Check]:
    """Logits, risks and scores of PyTorch and the export; of the bare model and the base graphs; and before folding."""
    for case, batch in requests.items():
        say(f"parity: {case}")
        with applied(adapters) as hooks:
            gap = compare_logits(vlm, same.export, batch, steps, hooks)
            scores = compare_scores(hooks.extras, gap.extras)
        yield _check("logits", case, gap.logits, table.logits)
        if gap.forced is not None:
            yield _check("risk", f"{case}, forced logits", gap.forced, EXACT)
        if (risk := scores.pop("risk", None)) is not None:
            yield _check("risk", case, risk.at_least(1), table.risk)
        for name, found in scores.items():
            yield _check("scores", f"{case}, {name}", found, table.scores)
    for case, batch in requests.items() if same.base is not None else ():
        say(f"parity, adapter off: {case}")
        yield _check("adapter-off", case, compare_logits(vlm, same.base, batch, steps).logits, table.logits)
    for case, batch in requests.items() if unfolded else ():
        say(f"parity, not folded: {case}")
        with applied(unfolded) as hooks:
            yield _check("fold", case, compare_logits(vlm, same.export, batch, steps, hooks).logits, table.logits)


def _drift(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    base: OnnxVLM | None,
    requests: Mapping[str, Sequence[Request]],
    steps: int,
    tolerance: Tolerance,
    applied: Callable[[], AbstractContextManager[AppliedAdapters]],
    say: Callable[[str], None],
    *,
    risks: bool,
) -> Iterator[Check]:
    """How far rounded weights take the base graphs from the checkpoint, and a detector's risk with them.

    Args:
        risks: whether risks were not compared otherwise.
    """
    for case, batch in requests.items():
        say(f"drift: {case}")
        if base is not None:
            yield _check("drift", case, compare_logits(vlm, base, batch, steps).logits, tolerance)
        if risks and onnx_vlm.detector is not None:
            with applied() as hooks:
                vlm.prefill(batch)
                found = compare_scores(hooks.extras, onnx_vlm.prefill_requests(batch).extras)
            yield _check("drift", f"{case}, risk", found["risk"].at_least(1), tolerance)


def _bypassable(onnx_vlm: OnnxVLM) -> bool:
    """Whether all changes of a decoder that is not our own fp32 or fp16 export can be taken out of the way."""
    manifest = onnx_vlm.manifest
    ours = manifest.foreign is None and manifest.precision in ("fp32", "fp16")
    return not ours and manifest.layout == "onnx" and manifest.mode != "fold" and not _replaced(onnx_vlm)


def _replaced(onnx_vlm: OnnxVLM) -> bool:
    initializers = ir.load(onnx_vlm.path / onnx_vlm.manifest.graph_file("decoder")).graph.initializers
    return any(f"safetykit.{name}" in initializers for name in onnx_vlm.manifest.updates)


def _check(kind: str, case: str, gap: Gap, tolerance: Tolerance) -> Check:
    # JSON has no NaN or infinity: an error that is not a number is reported as the largest float
    error = gap.error if math.isfinite(gap.error) else 1.7976931348623157e308
    return Check(
        kind=kind,
        case=case,
        count=gap.count,
        error=error,
        scale=gap.scale,
        limit=tolerance.absolute + tolerance.relative * gap.scale,
        passed=tolerance.passes(error, gap.scale),
    )


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
    return _check("risk", "threshold and refusal", Gap(0.0 if same else 1.0, 1.0, 1), EXACT)


def _flip_check(flips: Sequence[Flip], count: int, share: float) -> Check:
    flipped, allowed = len({flip.id for flip in flips}), math.floor(share * count)
    return Check(
        kind="decisions",
        case="evaluation records",
        count=count,
        error=flipped,
        scale=count,
        limit=allowed,
        passed=flipped <= allowed,
    )


def _with_margin(flip: Flip, vlm: VLM, onnx_vlm: OnnxVLM, record: Record | None, max_new_tokens: int) -> Flip:
    if flip.what != "outcome" or record is None:
        return flip
    margin = parting_margin(vlm, onnx_vlm, Request(record.prompt, record.picture()), max_new_tokens)
    return flip.model_copy(update={"margin": margin})


def find_flips(pytorch: Sequence[Decision], onnx: Sequence[Decision]) -> list[Flip]:
    """Decisions that differ: outcome of the answer, or a gate's state.

    Raises:
        UsageError: the two are not about the same records.
    """
    if [item.id for item in pytorch] != [item.id for item in onnx]:
        raise UsageError("The two lists of decisions are about different records.", "Decide the same records twice.")
    flips = []
    for ours, theirs in zip(pytorch, onnx, strict=True):
        if ours.outcome != theirs.outcome:
            flips.append(Flip(id=ours.id, what="outcome", pytorch=ours.outcome, onnx=theirs.outcome, margin=None))
        for name in sorted(ours.scores.keys() | theirs.scores.keys()):
            left, right = ours.scores.get(name, math.nan), theirs.scores.get(name, math.nan)
            if math.isnan(left) or math.isnan(right) or (left > 0) != (right > 0):
                margin = min(abs(left), abs(right))
                flips.append(
                    Flip(
                        id=ours.id,
                        what=name,
                        pytorch=_state(left),
                        onnx=_state(right),
                        margin=None if math.isnan(margin) else margin,
                    )
                )
    return flips


def _state(score: float) -> str:
    return "missing" if math.isnan(score) else "open" if score > 0 else "closed"
