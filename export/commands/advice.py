"""What a quickstart's figures stand on, and what it would take to do better: each in a sentence, with the command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...adapters.method import Method
from ...toolkit.commands.console import as_typed, command_line
from ...toolkit.data.records import load_records
from ...toolkit.data.sources import data_path
from ...toolkit.evaluation.few import few_records
from ...toolkit.evaluation.judge import REFUSAL_PHRASES

if TYPE_CHECKING:
    from ...toolkit.evaluation.evaluate import Evaluation
    from .quickstart_plan import Plan

_STILL = 0.5  # of the attacks, beyond which a method did little
_COSTLY = 0.02  # over-refusal gained
_SEEN = ("sasa", "one-pass")  # methods that learn from labelled pictures, too


def judged_by(data: str) -> dict[str, int]:
    """How many test records say what their answer is, by label; of the others only refusals are told from answers."""
    found = load_records(data_path(data), ["test"])
    said = Counter(record.label for record in found if record.response is not None)
    return {"harmful": said["harmful"], "harmless": said["harmless"], "records": len(found)}


def not_aligned(before: Evaluation, methods: Sequence[Method]) -> str:
    """Why nothing is fitted: a model that refuses no harmful text, and a method that strengthens refusals."""
    texts = [item for item in before.decisions if item.label == "harmful" and item.carrier == "text"]
    if not texts or any(item.outcome == "refused" for item in texts):
        return ""
    idle = [method for method in methods if "refusal" not in method.takes]
    if not idle:
        return ""
    return (
        f"The model refuses none of {len(texts)} harmful requests in text, so there is no refusal that "
        f"{' or '.join(method.title for method in idle)} could carry over to pictures."
    )


def advice(plan: Plan, found: dict[str, Any], before: Evaluation) -> list[str]:
    """What would give better figures, or better founded ones, in the order in which it is worth doing."""
    model = as_typed(plan.model, as_words=True)
    return [
        *_of_alignment(plan, found, before),
        *_of_method(plan, found, model),
        *_of_records(plan, found, before),
        *_of_machine(before),
    ]


def _of_alignment(plan: Plan, found: dict[str, Any], before: Evaluation) -> Iterator[str]:
    if found["stopped"]:
        yield (
            "Begin with a checkpoint that was aligned: one that refuses such requests when they are typed. Or let a "
            "detector refuse in its own words: "
            + command_line("quickstart", as_typed(plan.model, as_words=True), "--method", "one-pass", "-o", "FOLDER")
            + "."
        )
        answer = next((item.text for item in before.decisions if item.label == "harmful"), "")
        if answer:
            yield (
                f"Read what it answers in {plan.folder / 'before.json'}: refusals are known by their phrases, such as "
                f"“{REFUSAL_PHRASES[0]}” or “{REFUSAL_PHRASES[3]}”, and a model that refuses in others, or in another "
                "language, is not heard."
            )
    if plan.obstacle:
        yield (
            f"There is no export: {plan.obstacle} Graphs that somebody else exported take the adapter, too: "
            "safetykit export --base-onnx."
        )


def _of_method(plan: Plan, found: dict[str, Any], model: str) -> Iterator[str]:
    if found["comparison"] is None:
        return
    before, after = (
        {row["group"]: row["metrics"] for row in found["comparison"][side]["rows"]} for side in ("before", "after")
    )
    attacks = [rows["all"]["attack_success"]["rate"] for rows in (before, after)]
    others = [name for name in _SEEN if name not in plan.options.method]
    if attacks[1] > _STILL * attacks[0] and others:
        names = [word for name in (*plan.options.method, *others) for word in ("--method", name)]
        yield (
            f"{100 * attacks[1]:.0f} % of the attacks still succeed. {' and '.join(others)} learn from labelled "
            "pictures, too; the best of several is taken: "
            + command_line("quickstart", model, *names, *_given(plan), "-o", "FOLDER")
            + "."
        )
    refused = [rows["all"]["over_refusal"]["rate"] for rows in (before, after)]
    if refused[1] - refused[0] > _COSTLY:
        yield (
            f"Over-refusal rose by {100 * (refused[1] - refused[0]):.1f} points. Harmless records like your own "
            "requests, in the splits fit and calibration, keep it down."
        )
    for one in found["fitted"]:
        if one["method"] == found["method"] and one["sweep"] and one["sweep"]["trials"] >= plan.options.trials:
            name = one["method"]
            yield (
                f"{one['sweep']['trials']} settings of {name} were tried, on {plan.options.limit} calibration records "
                "at most. All of them, on all records: "
                + command_line("fit", name, model, "--data", plan.data, "-o", "ADAPTER", "--sweep")
                + "."
            )


def _of_records(plan: Plan, found: dict[str, Any], before: Evaluation) -> Iterator[str]:
    if plan.starter:
        yield (
            "The starter's requests are ours, in English, and name harms in the abstract. What counts is what your "
            "users ask: safetykit data import makes records of it, and --data takes them."
        )
    if not found["judged_by"]["harmful"]:
        yield (
            "No harmful record says what a successful attack answers (`response`), so every answer that is no refusal "
            "counts as one, also what is off the point: attack success is overstated."
        )
    answered = Counter(f"{before.split}/{item.carrier}/{item.label}" for item in before.decisions)
    if few := few_records(answered):
        yield f"Ask more: {few} --limit takes more records."
    elif found["judged_by"]["records"] > len(before.decisions):
        yield (
            f"{len(before.decisions)} of {found['judged_by']['records']} test records were asked; --limit takes more, "
            "which narrows the intervals in the report."
        )


def _of_machine(before: Evaluation) -> Iterator[str]:
    if before.ran is not None and str(before.ran.device).startswith("cpu"):
        yield "It ran on the processor. With a GPU (--device cuda) more records and settings cost little time."


def _given(plan: Plan) -> list[str]:
    return [] if plan.options.data is None else ["--data", plan.options.data]
