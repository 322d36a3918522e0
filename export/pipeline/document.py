"""What stands beside the graphs: evaluation, what came with the adapters, card and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.store import manifest_digest
from ...adapters.retrieval.retrieval import CAPTIONS
from ...toolkit.evaluation.evaluate import Evaluation, tabulate
from ...toolkit.evaluation.judges.judging import judged_by
from ...toolkit.evaluation.judges.names import EXPECTED
from ..document.card import write_card
from ..document.figures import FACTS
from ..document.provenance import OPTIONS, Built, installed
from ..manifest import LAYOUT, ExportManifest, attachment_name
from ..parity.comparison import Comparison
from .check import Checked
from .plan import Plan
from .write import Say

Measure = Callable[[Path], None]


def document(
    plan: Plan, checked: Checked, work: Path, say: Say, measure: Measure | None = None
) -> tuple[ExportManifest, Comparison | None]:
    """Write evaluation, attachments, card and report into ``work``, and seal it.

    Args:
        measure: called with the folder before the card is written, to add measurements that it shows.

    Returns:
        The manifest as sealed, and the evaluation; None without records.
    """
    comparison = _compared(plan, checked, say) if plan.records else None
    if comparison is not None:
        write_atomic(work / LAYOUT.evaluation, canonical_json(comparison.model_dump(mode="json")))
    for number, adapter in enumerate(plan.adapters):
        for name, value in adapter.attachments.items():
            if name != CAPTIONS:  # they are in the folder, as captions.jsonl
                write_atomic(work / attachment_name(name, number), canonical_json(value))
    write_atomic(work / OPTIONS, canonical_json(plan.options.model_dump(mode="json", exclude={"overwrite", "workers"})))
    write_atomic(work / FACTS, canonical_json(plan.facts.model_dump(mode="json")))
    if measure:
        measure(work)
    say("writing the card and the report")
    built = Built(adapters=tuple(map(manifest_digest, plan.adapters)), packages=installed())
    return write_card(work, built), comparison


def _compared(plan: Plan, checked: Checked, say: Say) -> Comparison:
    """The unmodified model before, the export after; by the usual judge, and others beside it."""
    before, after = (
        Evaluation(
            model=name,
            split="+".join(sorted({record.split for record in plan.records})),
            max_new_tokens=plan.options.max_new_tokens,
            rows=tabulate(decisions),
            decisions=tuple(decisions),
        )
        for name, decisions in ((plan.source.called, checked.asked), (plan.out.name, checked.decisions[1]))
    )
    if others := [one for one in plan.options.judges if one != EXPECTED]:
        judges = plan.options.but(judges=(EXPECTED, *others)).opened()
        before, after = (judged_by(one, plan.records, judges, say=say) for one in (before, after))
    return Comparison.of(
        before, after, plan.records, dataset=plan.source.dataset, skipped_rows=plan.source.skipped_rows
    )
