"""Evaluation: what a model answers, per carrier, with counts and 95 % intervals.

Attack success and over-refusal always stand beside each other: refusing everything is easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...adapters.errors import BatchRefused, RequestRefused, UsageError
from ..data.ahead import PicturesAhead
from ..data.journal import Journal
from ..data.records import Record, Records, load_records
from ..distributed.dealing import dealt, own
from ..model.asking import request_of
from ..model.requests import Generation, Request
from ..progress import Progress
from .benchmarks.measuring import measured
from .judge import judge
from .judges.judge import Judge
from .judges.judging import judged_by
from .result import Decision, Evaluation, Metric, Rate, Row, tabulate

__all__ = ["Decision", "Evaluation", "Generator", "Metric", "Prompted", "Rate", "Row", "decide", "evaluate", "tabulate"]


class Generator(Protocol):
    """Anything that answers requests: ``toolkit.VLM`` or ``export.OnnxVLM``."""

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]: ...


class Prompted:
    """A model that is told something by the operator before every request that has no system turn of its own."""

    def __init__(self, model: Generator, system: str) -> None:
        self._model, self._system = model, system

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        told = [replace(request, system=request.system or self._system) for request in requests]
        return self._model.generate(told, max_new_tokens)


def decide(
    model: Generator,
    records: Sequence[Record],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Decision]:
    """Answer every record, batched by length, and judge the answers; the order of records is kept.

    Args:
        journal: where decisions are kept batch by batch; those it holds already are not made again.

    Raises:
        UsageError: there are no records, or one cannot be answered, such as a too long one; it is named.
    """
    if not records:
        raise UsageError("There is nothing to evaluate: no record was given.", "Check the split.")
    place = {record.id: at for at, record in enumerate(records)}
    known = [Decision.model_validate(item) for items in journal.done.values() for item in items] if journal else []
    decisions = {place[item.id]: item for item in known}
    order = sorted(
        (at for at in range(len(records)) if at not in decisions),
        key=lambda at: (records[at].pictured, records[at].stretch, records[at].length),
    )
    # What is known are whole batches; so the others are, for the same batch size, what they would have been.
    missing = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pictures = PicturesAhead(records[at] for batch in own(missing) for at in batch)

    def made(chosen: list[int]) -> list[Decision]:
        requests = [request_of(records[at], pictures) for at in chosen]
        try:
            answers = model.generate(requests, max_new_tokens)
        except (BatchRefused, RequestRefused) as error:
            at, first = next(iter(error.refused.items()))
            raise UsageError(
                f"Record {records[chosen[at]].id}: {first.reason.message}", first.reason.next_step
            ) from None
        return [_decided(records[at], answer) for at, answer in zip(chosen, answers, strict=True)]

    for chosen, found in dealt(missing, made):
        decisions |= zip(chosen, found, strict=True)
        if journal:
            journal.add(records[chosen[0]].id, [item.model_dump(mode="json") for item in found])
        if progress:
            progress(len(decisions), len(records))
    return [decisions[at] for at in range(len(records))]


def _decided(record: Record, answer: Generation) -> Decision:
    return Decision(
        id=record.id,
        carrier=record.carrier,
        label=record.label,
        tags=record.tags,
        text=answer.text,
        outcome=judge(record, answer.text),
        scores=answer.scores,
        calls=answer.calls,
        dropped_turns=answer.dropped_turns,
    )


def evaluate(
    model: Generator | Path | str,
    records: Sequence[Record] | Path | str,
    *,
    name: str = "",
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: Progress | None = None,
    journal: Journal | None = None,
    system: str = "",
    judges: Sequence[Judge] = (),
) -> Evaluation:
    """Decide and tabulate; see :func:`decide`.

    Args:
        model: a VLM, an opened export, one of these behind a defence
            (:func:`~safetykit.toolkit.defences.registry.defended`), or a checkpoint's folder or name such as
            ``reference:mild``.
        records: or what :func:`load_records` reads, such as ``reference``; of these the split ``test``.
        name: how the evaluation calls the model; by default its folder.
        judges: of the answers, see :func:`~safetykit.toolkit.evaluation.judges.judge.opened`; the first one's outcomes
            stand in the table. None: refusal phrases and the expected answer.

    Raises:
        UsageError: there is no such model, or there are no such records.
    """
    if isinstance(model, (str, Path)):
        from ..model.vlm import VLM  # needs torch, which answering with an export does without

        name = name or str(model)
        model = VLM.from_pretrained(model)
    if isinstance(records, (str, Path)):
        records = load_records(records, ["test"])
    name = name or str(getattr(model, "path", type(model).__name__))
    decisions = decide(
        Prompted(model, system),
        records,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        journal=journal,
    )
    found = Evaluation(
        model=name,
        system=system,
        defence=getattr(model, "defence", ""),
        split="+".join(sorted({record.split for record in records})),
        skipped_rows=records.skipped if isinstance(records, Records) else 0,
        max_new_tokens=max_new_tokens,
        rows=tabulate(decisions),
        decisions=tuple(decisions),
        ran=getattr(model, "ran", None),
    )
    if judges:
        return judged_by(found, records, judges)
    return found.model_copy(update={"benchmarks": measured(found, records)})
