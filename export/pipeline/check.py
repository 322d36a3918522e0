"""Checking what was written: decisions over records, parity, and the folder as its runtime gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...toolkit.evaluation.evaluate import Decision, decide
from ...toolkit.model.inputs import InputProcessor
from ..layouts.arrange import arrange
from ..layouts.check import compare_arranged
from ..layouts.describe import write_interface
from ..manifest import LAYOUT, ExportManifest
from ..parity.check import check_parity
from ..parity.compare import parity_requests
from ..parity.report import ParityReport
from .plan import Plan
from .write import Say, Written, open_export

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM


Pair = tuple[Sequence[Decision], Sequence[Decision]]


@dataclass(frozen=True)
class Checked:
    """What checking found, and the folder as it then is.

    Attributes:
        manifest: of the folder, arranged for its runtime.
        parity: the report, which passed.
        decisions: answers to the records by PyTorch and by ONNX Runtime; empty without records.
        unmodified: those of the model without adapters, with its own weights; None where they were not asked for.
    """

    manifest: ExportManifest
    parity: ParityReport
    decisions: Pair = ((), ())
    unmodified: Pair | None = None


def check_written(plan: Plan, vlm: VLM, written: Written, work: Path, say: Say) -> Checked:
    """Compare the graphs in ``work`` with the model, arrange the folder, and compare again.

    Raises:
        ParityFailed: the export does not do what the model does.
        UsageError: the layout's runtime cannot run these graphs.
    """
    options = plan.options
    decisions: Pair = ((), ())
    unmodified = None
    if plan.records:
        decisions = _decide(plan, vlm, written, say)
        if options.precision != "fp32" and not plan.bare:
            unmodified = _decide_unmodified(plan, vlm, written, say)
    report = check_parity(
        vlm,
        written.export,
        written.adapters,
        unfolded=written.unfolded,
        base=written.base,
        records=plan.records,
        decisions=decisions if plan.records else None,
        unmodified=unmodified,
        max_new_tokens=options.max_new_tokens,
        max_flips=options.max_flips,
        allow_wrong_base=options.allow_wrong_base,
        progress=say,
    )
    report.require()
    manifest = written.manifest
    if options.layout != "onnx":
        say(f"arranging for {options.layout}")
        manifest = arrange(work, manifest, options.layout)
        arranged = open_export(plan, vlm, work, manifest, InputProcessor.from_pretrained(work))
        batches = parity_requests(plan.records, set()).values()
        report = report.with_layout(options.layout, compare_arranged(written.export, arranged, batches))
        report.require()
    report.write(work / LAYOUT.parity)
    write_interface(work, manifest, vlm.inputs)
    # With the checkpoint's own weights, PyTorch's answers are those that the evaluation starts from.
    return Checked(manifest, report, decisions, unmodified if written.standing.on is None else None)


def _decide(plan: Plan, vlm: VLM, written: Written, say: Say) -> Pair:
    options = plan.options
    say("answering the records with PyTorch")
    with (
        written.standing.held(vlm),
        vlm.applied(*written.compared, allow_wrong_base=options.allow_wrong_base, enforce=options.enforce),
    ):
        ours = decide(vlm, plan.records, max_new_tokens=options.max_new_tokens)
    say("answering the records with ONNX Runtime")
    return ours, decide(written.export, plan.records, max_new_tokens=options.max_new_tokens)


def _decide_unmodified(plan: Plan, vlm: VLM, written: Written, say: Say) -> Pair:
    """The same without adapters: what rounding alone does to the decisions."""
    say("answering the records without the adapter")
    with written.standing.held(vlm):
        ours = decide(vlm, plan.records, max_new_tokens=plan.options.max_new_tokens)
    return ours, decide(written.base, plan.records, max_new_tokens=plan.options.max_new_tokens)
