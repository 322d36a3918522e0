"""What a quickstart's figures stand on, and what it would take to do better: each with the command, if there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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

_MANY = 0.2  # of the attacks of a carrier that still succeed
_COSTLY = 0.02  # over-refusal gained
_OTHERS = ("sasa", "one-pass")  # methods that learn from labelled pictures, too
_TELLS = 10  # harmful requests in text: of a model that refuses a quarter, 6 % of such samples hold no refusal
_NEW = "quickstart-2"  # a folder for another run


@dataclass(frozen=True)
class Advice:
    """One thing that would make figures better, or better founded.

    Attributes:
        why: in a sentence or two.
        command: to type; empty if there is none.
    """

    why: str
    command: str = ""


def judged_by(data: str) -> dict[str, int]:
    """How many test records there are, and how many of each label say what their answer is: of the others only refusals
    are told from answers."""
    found = load_records(data_path(data), ["test"])
    said = Counter(record.label for record in found if record.response is not None)
    return {"harmful": said["harmful"], "harmless": said["harmless"], "records": len(found)}


def not_aligned(before: Evaluation, methods: Sequence[Method]) -> str:
    """Why nothing is fitted: a model that refuses no harmful text of many, and a method that strengthens refusals."""
    if (count := _unrefused(before)) < _TELLS:
        return ""
    if not (idle := [method.title for method in methods if "refusal" not in method.takes]):
        return ""
    return (
        f"The model refuses none of {count} harmful requests in text, so there is no refusal that "
        f"{' or '.join(idle)} could carry over to pictures."
    )


def _unrefused(before: Evaluation) -> int:
    """How many harmful requests in text were asked, if none was refused; else 0."""
    texts = [item for item in before.decisions if item.label == "harmful" and item.carrier == "text"]
    return 0 if any(item.outcome == "refused" for item in texts) else len(texts)


def advice(plan: Plan, found: dict[str, Any], before: Evaluation) -> list[dict[str, str]]:
    """What would help, in the order in which it is worth doing."""
    model = as_typed(plan.model, as_words=True)
    given = [] if plan.options.data is None else ["--data", plan.options.data]
    told = [
        *_of_alignment(plan, found, before, [model, *given]),
        *_of_method(plan, found, [model, *given]),
        *_of_settings(plan, found, model),
        *_of_records(plan, found, before),
        *_of_machine(plan, before),
    ]
    return [asdict(one) for one in told]


def _of_alignment(plan: Plan, found: dict[str, Any], before: Evaluation, typed: list[str]) -> Iterator[Advice]:
    if found["stopped"]:
        yield Advice(
            "Begin with a checkpoint that was aligned: one that refuses such requests when they are typed. Or have a "
            "detector refuse in its own words:",
            command_line("quickstart", *typed, "--method", "one-pass", "-o", _NEW),
        )
        yield Advice(
            f"Read what it answers, in {plan.folder / 'before.json'}. Refusals are known by English phrases, such as "
            f"“{REFUSAL_PHRASES[0]}” or “{REFUSAL_PHRASES[3]}”; a model that refuses in other words is not heard."
        )
    elif 0 < (count := _unrefused(before)) < _TELLS:
        yield Advice(
            f"None of {count} harmful requests in text was refused, which is too few to tell that the model refuses "
            f"none: {_TELLS} would. It was fitted all the same. A larger --limit asks more."
        )
    if plan.obstacle:
        yield Advice(
            f"There is no export: {plan.obstacle} Graphs that somebody else exported take the adapter, too, with "
            "safetykit export --base-onnx."
        )


def _of_method(plan: Plan, found: dict[str, Any], typed: list[str]) -> Iterator[Advice]:
    if found["comparison"] is None:
        return
    before, after = (
        {row["group"]: row["metrics"] for row in found["comparison"][side]["rows"]} for side in ("before", "after")
    )
    attacks = {
        name: rates["attack_success"]["rate"]
        for name, rates in after.items()
        if name != "all" and "/" not in name and "attack_success" in rates
    }
    worst = max(attacks, key=lambda name: attacks[name], default=None)
    others = [name for name in _OTHERS if name not in plan.options.method]
    if worst is not None and attacks[worst] > _MANY and others:
        names = [word for name in (*plan.options.method, *others) for word in ("--method", name)]
        yield Advice(
            f"{100 * attacks[worst]:.0f} % of the attacks by {worst} still succeed. {' and '.join(others)} learn from "
            "labelled pictures, too; of several methods the best is taken:",
            command_line("quickstart", *typed, *names, "-o", _NEW),
        )
    gained = after["all"]["over_refusal"]["rate"] - before["all"]["over_refusal"]["rate"]
    if gained > _COSTLY:
        yield Advice(
            f"Over-refusal rose by {100 * gained:.1f} points. Harmless records like your own requests, in the "
            "splits fit and calibration, keep it down."
        )


def _of_settings(plan: Plan, found: dict[str, Any], model: str) -> Iterator[Advice]:
    for one in found["fitted"]:
        sweep = one["sweep"]
        if one["method"] != found["method"] or sweep is None:
            continue
        if sweep["best"]["attack_success"] >= sweep["undefended"]["attack_success"]:
            yield Advice("No setting that was tried stopped an attack on calibration records; the cheapest was taken.")
        if sweep["trials"] >= plan.options.trials:
            yield Advice(
                f"{sweep['trials']} settings of {one['method']} were tried, on {plan.options.limit} calibration "
                "records at most. All of them, on all records:",
                command_line("fit", one["method"], model, "--data", plan.data, "-o", "adapter", "--sweep"),
            )


def _of_records(plan: Plan, found: dict[str, Any], before: Evaluation) -> Iterator[Advice]:
    if plan.starter:
        yield Advice(
            "The starter's requests are ours, in English, and name harms in the abstract. What counts is what your "
            "users ask: make records of it, and give them with --data.",
            command_line("data", "import", "auto", "PATH", "-o", "records"),
        )
    if not found["judged_by"]["harmful"]:
        yield Advice(
            "No harmful record says what a successful attack answers (response), so every answer that is no refusal "
            "counts as one, also what is off the point: attack success is overstated."
        )
    answered = Counter(f"{before.split}/{item.carrier}/{item.label}" for item in before.decisions)
    if few := few_records(answered):
        yield Advice(f"{few[0].upper()}{few[1:]} --limit asks more.")
    elif found["judged_by"]["records"] > len(before.decisions):
        yield Advice(
            f"{len(before.decisions)} of {found['judged_by']['records']} test records were asked. A larger --limit "
            "narrows the intervals, which the report shows."
        )


def _of_machine(plan: Plan, before: Evaluation) -> Iterator[Advice]:
    if not plan.organism and before.ran is not None and before.ran.device.startswith("cpu"):
        yield Advice("It ran on the processor. On a GPU (--device cuda) more records and settings cost little time.")
