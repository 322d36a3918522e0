"""Checking what was written: decisions over records, parity, and the folder as its runtime gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...toolkit.evaluation.evaluate import Decision, decide
from ...toolkit.model.inputs import InputProcessor
from ..layouts.arrange import arrange
from ..layouts.check import compare_arranged, record_arranged
from ..layouts.describe import write_interface
from ..manifest import LAYOUT, ExportManifest
from ..parity.check import compare_graphs
from ..parity.compare import parity_requests
from ..parity.reference import Against, record_reference
from ..parity.report import ParityReport
from .canaries import record_canaries
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
        asked: PyTorch's without adapters, with the checkpoint's weights, which the evaluation starts from.
    """

    manifest: ExportManifest
    parity: ParityReport
    decisions: Pair = ((), ())
    asked: Sequence[Decision] = ()


def check_written(plan: Plan, vlm: VLM, written: Written, work: Path, say: Say) -> Checked:
    """Compare the graphs in ``work`` with the model, arrange the folder, and compare again.

    Raises:
        ParityFailed: the export does not do what the model does.
        UsageError: the layout's runtime cannot run these graphs.
    """
    options = plan.options
    with TemporaryDirectory(dir=work, prefix=".parity-") as folder:
        # First all that PyTorch is asked for, then all that the graphs are: they are never both in memory.
        with vlm.in_memory():
            answers = _answered(plan, vlm, written, say)
            against = Against(
                unfolded=written.unfolded,
                base=written.base,
                records=plan.records,
                decisions=(answers.adapted, ()) if plan.records else None,
                max_new_tokens=options.max_new_tokens,
                max_flips=options.max_flips,
                allow_wrong_base=options.allow_wrong_base,
                rows=options.parity_rows,
            )
            recording = record_reference(vlm, written.export, written.adapters, against, Path(folder), say)
        decisions, unmodified = _decided(plan, written, answers, say)
        against = replace(against, decisions=decisions if plan.records else None, unmodified=unmodified)
        report = compare_graphs(recording, vlm, written.export, written.adapters, against, progress=say)
    report.require()
    manifest = written.manifest
    if canaries := record_canaries(plan, written, decisions[1], answers.asked):
        write_atomic(work / LAYOUT.canary, canonical_json(canaries.model_dump(mode="json")))
    if options.layout != "onnx":
        say(f"arranging for {options.layout}")
        batches = list(parity_requests(plan.records, set(), rows=options.parity_rows).values())
        with written.export.in_use() as before:
            recorded = [record_arranged(before, batch) for batch in batches]
        manifest = arrange(work, manifest, options.layout)
        arranged = open_export(plan, vlm, work, manifest, InputProcessor.from_pretrained(work))
        with arranged.in_use():
            gap = compare_arranged(recorded, arranged, batches)
        report = report.with_layout(options.layout, gap)
        report.require()
    report.write(work / LAYOUT.parity)
    write_interface(work, manifest, vlm.inputs)
    return Checked(manifest, report, decisions, answers.asked)


@dataclass(frozen=True)
class _Answers:
    """PyTorch's answers to the records; all empty without records.

    Attributes:
        adapted: with the adapters.
        bare: without them, with the weights that the adapters were fitted on; where weights are rounded.
        asked: without them, with the checkpoint's weights: what the evaluation starts from.
    """

    adapted: Sequence[Decision] = ()
    bare: Sequence[Decision] = ()
    asked: Sequence[Decision] = ()


def _answered(plan: Plan, vlm: VLM, written: Written, say: Say) -> _Answers:
    options = plan.options
    if not plan.records:
        return _Answers()

    def answers() -> Sequence[Decision]:
        return decide(vlm, plan.records, max_new_tokens=options.max_new_tokens)

    say("answering the records with PyTorch")
    with (
        written.standing.held(vlm),
        vlm.applied(*written.compared, allow_wrong_base=options.allow_wrong_base, enforce=options.enforce),
    ):
        adapted = answers()
    asked: Sequence[Decision] = plan.source.answered
    if not asked:
        say("answering the records without the adapter")
        asked = answers()
    bare: Sequence[Decision] = ()
    if _rounded(plan):
        with written.standing.held(vlm):
            bare = asked if written.standing.on is None else answers()
    return _Answers(adapted, bare, asked)


def _decided(plan: Plan, written: Written, ours: _Answers, say: Say) -> tuple[Pair, Pair | None]:
    """The answers of both, with the adapters and, where weights are rounded, without: what rounding alone does."""
    if not plan.records:
        return ((), ()), None
    say("answering the records with ONNX Runtime")
    found = []
    for one in (written.export, written.base) if _rounded(plan) else (written.export,):
        with one.in_use():
            found.append(decide(one, plan.records, max_new_tokens=plan.options.max_new_tokens))
    return (ours.adapted, found[0]), (ours.bare, found[1]) if _rounded(plan) else None


def _rounded(plan: Plan) -> bool:
    return plan.options.precision != "fp32" and not plan.bare
