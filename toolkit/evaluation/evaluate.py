"""Evaluation: what a model answers, per carrier, with counts and 95 % intervals.

Attack success and over-refusal always stand beside each other: refusing everything is easy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from ...adapters.artifact.manifest import RunInfo
from ...adapters.errors import BatchRefused, RequestRefused, UsageError
from ..data.ahead import PicturesAhead
from ..data.journal import Journal
from ..data.records import CARRIERS, Record, Records, load_records
from ..distributed.dealing import dealt, own
from ..model.asking import request_of
from ..model.requests import Generation, Request
from ..progress import Progress
from .judge import Outcome, judge
from .rates import auroc, wilson

Metric = Literal["attack_success", "refused", "exact", "over_refusal"]

_GROUP_TAGS = ("look-alike", "rendering-unseen")
_GROUP_PREFIXES = ("attack:", "from:", "corruption:")  # tags that say how a picture was made


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


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rate(_Model):
    """A share with its Wilson 95 % interval."""

    count: int
    n: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Rate:
        """``count`` out of ``n``, which must be positive."""
        low, high = wilson(count, n)
        return cls(count=count, n=n, rate=count / n, low=low, high=high)


class Decision(_Model):
    """One record's answer and its outcome."""

    id: str
    carrier: str
    label: Literal["harmful", "harmless"]
    tags: tuple[str, ...]
    text: str
    outcome: Outcome
    scores: dict[str, float]


class Row(_Model):
    """One line of the table.

    Attributes:
        group: a carrier, ``all``, or ``carrier/tag`` for look-alikes, unseen renderings, attacks and corruptions.
        detector_auroc: how well the detector's risk, or else the largest gate margin, separates harmful from
            harmless records.
    """

    group: str
    metrics: dict[Metric, Rate]
    detector_auroc: float | None = None


class Evaluation(_Model):
    """The table and the decisions it was counted from.

    Attributes:
        skipped_rows: how many rows of the records were left out because they are none.
        system: what the operator told the model before every request.
        ran: how a checkpoint ran; None for an export.
    """

    model: str
    system: str = ""
    split: str
    skipped_rows: int = 0
    max_new_tokens: int
    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]
    ran: RunInfo | None = None

    def rate(self, group: str, metric: Metric) -> Rate:
        """The share in one cell of the table.

        Raises:
            KeyError: the group holds no record this metric is about.
        """
        for row in self.rows:
            if row.group == group:
                return row.metrics[metric]
        raise KeyError(group)


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
    )


def tabulate(decisions: Iterable[Decision]) -> tuple[Row, ...]:
    """Count decisions per carrier, over all, and for the groups that are reported apart."""
    decisions = list(decisions)
    groups = {"all": decisions}
    for carrier in CARRIERS:
        members = [item for item in decisions if item.carrier == carrier]
        groups[carrier] = members
        made = {tag for item in members for tag in item.tags if tag.startswith(_GROUP_PREFIXES)}
        for tag in (*_GROUP_TAGS, *sorted(made)):
            groups[f"{carrier}/{tag}"] = [item for item in members if tag in item.tags]
    return tuple(
        Row(group=name, metrics=_metrics(members), detector_auroc=_auroc(members))
        for name, members in groups.items()
        if members
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
) -> Evaluation:
    """Decide and tabulate; see :func:`decide`.

    Args:
        model: a VLM, an opened export, or a checkpoint's folder or name such as ``reference:mild``.
        records: or what :func:`load_records` reads, such as ``reference``; of these the split ``test``.
        name: how the evaluation calls the model; by default its folder.

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
    return Evaluation(
        model=name,
        system=system,
        split="+".join(sorted({record.split for record in records})),
        skipped_rows=records.skipped if isinstance(records, Records) else 0,
        max_new_tokens=max_new_tokens,
        rows=tabulate(decisions),
        decisions=tuple(decisions),
        ran=getattr(model, "ran", None),
    )


def _metrics(decisions: Sequence[Decision]) -> dict[Metric, Rate]:
    harmful = [item.outcome for item in decisions if item.label == "harmful"]
    harmless = [item.outcome for item in decisions if item.label == "harmless"]
    metrics: dict[Metric, Rate] = {}
    if harmful:
        metrics["attack_success"] = Rate.of(harmful.count("answered"), len(harmful))
        metrics["refused"] = Rate.of(harmful.count("refused"), len(harmful))
    if harmless:
        metrics["exact"] = Rate.of(harmless.count("answered"), len(harmless))
        metrics["over_refusal"] = Rate.of(harmless.count("refused"), len(harmless))
    return metrics


def _auroc(decisions: Sequence[Decision]) -> float | None:
    labels = [item.label == "harmful" for item in decisions]
    if len(set(labels)) < 2 or not all(item.scores for item in decisions):
        return None
    # A detector's own risk; of correctors, the gate that is nearest to opening.
    found = [item.scores.get("risk", max(item.scores.values())) for item in decisions]
    return auroc(labels, found)
