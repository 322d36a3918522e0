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
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.manifest import DetectorInfo
from ...adapters.ops.op import Detector
from ...toolkit.model.requests import Request
from ..names import THRESHOLD, TOKEN, own
from ..runtime.onnx_vlm import OnnxVLM
from ..surgery.adapt import place
from ..surgery.detector import StatedDetector, stated_detector
from .bypass import check_bypass
from .compare import Gap, compare_logits, compare_scores, parity_requests, parting_margin
from .exposed import check_ops
from .held import Comparable, comparable
from .report import Check, Flip, ParityReport, find_flips, judged
from .retrieval_checks import check_retrieval
from .tolerances import EXACT, Tolerance, Tolerances, tolerances_of

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM


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
    max_flips: float | None = None,
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
        max_flips: share of ``decisions`` that may flip; by default what the precision's table says.

    Returns:
        The report; call :meth:`ParityReport.require` for the gate.
    """
    say = progress or (lambda _: None)
    table = tolerances_of(onnx_vlm)
    if max_flips is not None:
        table = table.model_copy(update={"flips": max_flips})
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
        checks += _drift(
            vlm, onnx_vlm, base, requests, steps, table.drift, lambda: applied(adapters), say, risks=not exact
        )
    if base is not None and isinstance(base.decoder_source, bytes) and _bypassable(onnx_vlm):
        gap = check_bypass(onnx_vlm.path, onnx_vlm.manifest.graph_file("decoder"), base.decoder_source)
        checks.append(judged("adapter-off", "decoder with its ops bypassed", gap, EXACT))
    say("parity: ops")
    for one, op, invariant in check_ops(
        onnx_vlm.path,
        onnx_vlm.manifest,
        place(adapters),
        overrides=onnx_vlm.swapped.arrays if onnx_vlm.swapped else None,
        providers=onnx_vlm.providers,
    ):
        name = f"{one.index}: {one.item.op} at {one.item.site}"
        if isinstance(one.item.make_op(), Detector):
            checks.append(judged("risk", name, op.at_least(1), table.risk))
            continue
        checks.append(judged("op", name, op, table.op))
        if invariant is not None:
            checks.append(judged("invariant", name, invariant, table.invariant))
    checks += [
        judged("retrieval", f"{one.index}: {one.item.op} at {one.item.site}", gap, table.scores)
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
            scores = compare_scores(hooks, gap.extras)
        yield judged("logits", case, gap.logits, table.logits)
        if gap.forced is not None:
            yield judged("risk", f"{case}, forced logits", gap.forced, EXACT)
        if (risk := scores.pop("risk", None)) is not None:
            yield judged("risk", case, risk.at_least(1), table.risk)
        for name, found in scores.items():
            yield judged("scores", f"{case}, {name}", found, table.scores)
    for case, batch in requests.items() if same.base is not None else ():
        say(f"parity, adapter off: {case}")
        yield judged("adapter-off", case, compare_logits(vlm, same.base, batch, steps).logits, table.logits)
    for case, batch in requests.items() if unfolded else ():
        say(f"parity, not folded: {case}")
        with applied(unfolded) as hooks:
            yield judged("fold", case, compare_logits(vlm, same.export, batch, steps, hooks).logits, table.logits)


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
            yield judged("drift", case, compare_logits(vlm, base, batch, steps).logits, tolerance)
        if risks and onnx_vlm.detector is not None:
            with applied() as hooks:
                vlm.prefill(batch)
                found = compare_scores(hooks, onnx_vlm.prefill_requests(batch).extras)
            yield judged("drift", f"{case}, risk", found["risk"].at_least(1), tolerance)


def _bypassable(onnx_vlm: OnnxVLM) -> bool:
    """Whether all changes of a decoder that is not our own fp32 or fp16 export can be taken out of the way."""
    manifest = onnx_vlm.manifest
    ours = manifest.foreign is None and manifest.precision in ("fp32", "fp16")
    return not ours and manifest.layout == "onnx" and manifest.mode != "fold" and not _replaced(onnx_vlm)


def _replaced(onnx_vlm: OnnxVLM) -> bool:
    initializers = ir.load(onnx_vlm.path / onnx_vlm.manifest.graph_file("decoder")).graph.initializers
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
