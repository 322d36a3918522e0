"""What a person sees of a parity report and of a comparison; several commands show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from ...toolkit.commands.views import figures

Metrics = Sequence[tuple[str, str]]  # as evaluations call them, and as people do
METRICS: Metrics = (("attack_success", "attack success"), ("over_refusal", "over-refusal"), ("exact", "exact answers"))


def comparison(
    console: Console, value: dict[str, Any], after_is: str = "the exported model", metrics: Metrics = METRICS
) -> None:
    """Before and after, per carrier; the groups within carriers are left to the card."""
    table = figures(f"Before → after ({after_is})", *(name for _, name in metrics))
    after = {row["group"]: row["metrics"] for row in value["after"]["rows"]}
    for row in value["before"]["rows"]:
        if "/" in row["group"]:
            continue
        cells = []
        for metric, _ in metrics:
            first, second = row["metrics"].get(metric), after[row["group"]].get(metric)
            if first is None or second is None:
                cells.append("–")
            else:
                cells.append(f"{100 * first['rate']:.1f} → [bold]{100 * second['rate']:.1f} %[/bold]")
        table.add_row(row["group"], *cells)
    console.print(table)


def parity(console: Console, value: dict[str, Any]) -> None:
    """The verdict on one line, and what failed."""
    verdict = "[green]passed[/green]" if value["passed"] else "[red]FAILED[/red]"
    compared = ("logits", "adapter-off")  # a base export has no adapter to be on
    worst = max((check["error"] for check in value["checks"] if check["kind"] in compared), default=0.0)
    decided = any(check["kind"] == "decisions" for check in value["checks"])
    flipped = f"{len(value['flips'])} decisions flipped" if decided else "no decision was compared"
    if counts := value["flipped"]:
        flipped = (
            f"{counts['adapters']} of {counts['records']} decisions flipped by the adapters, {counts['unmodified']} by "
            "rounding the unmodified model"
        )
    console.print(
        f"Parity {verdict}: {len(value['checks'])} checks, {value['steps']} cached steps ({value['precision']}).\n"
        f"Largest logit error {worst:.1e}; {flipped}."
    )
    for check in value["checks"]:
        if not check["passed"]:
            console.print(
                f"  [red]{check['kind']}[/red] {escape(check['case'])}: {check['error']:.3g} > {check['limit']:.3g}"
            )
