"""Answers made by hand, judges whose verdicts stand in them, and the figures of benchmarks."""

from safetykit.toolkit.data.record import Record
from safetykit.toolkit.evaluation.benchmarks.measuring import measured
from safetykit.toolkit.evaluation.judges.judging import judged_by
from safetykit.toolkit.evaluation.judges.verdict import Judge, Verdict
from safetykit.toolkit.evaluation.result import Decision, Evaluation, tabulate


def asked(key, label="harmless", **fields):
    return Record(id=key, prompt=fields.pop("prompt", "p"), label=label, split="test", **fields)


class Says(Judge):
    """By the answer: `r`, `a` or `o`, else no verdict; its score is what follows."""

    name, partial, graded = "says", True, "right"

    def judge(self, items):
        outcome = {"r": "refused", "a": "answered", "o": "other"}
        return [Verdict(outcome.get(text[:1]), float(text[1:]) if text[1:2].isdigit() else None) for _, text in items]


class Whole(Says):
    """One that knows no refusal in part, and does not grade."""

    name, partial, graded = "whole", False, ""


def evaluation(pairs, scores=None):
    decisions = tuple(
        Decision(
            id=record.id,
            carrier=record.carrier,
            label=record.label,
            tags=record.tags,
            text=text,
            outcome="other",
            scores=(scores or {}).get(record.id, {}),
        )
        for record, text in pairs
    )
    return Evaluation(model="m", split="test", max_new_tokens=1, rows=tabulate(decisions), decisions=decisions)


def counted(pairs, *judges, scores=None):
    """The benchmarks of these records and answers."""
    found, records = evaluation(pairs, scores), [record for record, _ in pairs]
    return judged_by(found, records, judges).benchmarks if judges else measured(found, records)


def values(benchmark, group="all"):
    return {name: round(one.value, 4) for name, one in benchmark.figures[group].items()}
