"""What commands draw with: facts, tables of figures and shares, always from the same value as ``--json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

METRICS = (
    ("attack_success", "attack success"),
    ("refused", "refused"),
    ("over_refusal", "over-refusal"),
    ("exact", "exact answers"),
)


def facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A title over name/value lines."""
    console.print(f"[bold]{title}[/bold]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}[/dim]", value)
    console.print(table)


def figures(title: str, *columns: str) -> Table:
    """An empty table: a column of names, then right-aligned ``columns``."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(("", *columns)):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def rate(found: dict[str, Any] | None) -> str:
    """A share in percent with its interval and count; a dash where nothing was counted."""
    if found is None:
        return "–"
    return (
        f"{100 * found['rate']:.1f} % [dim]({100 * found['low']:.0f}–{100 * found['high']:.0f}, n={found['n']})[/dim]"
    )


def fit(console: Console, value: dict[str, Any]) -> None:
    """`safetykit fit`."""
    rows = [(name, escape(str(setting))) for name, setting in value["hyperparameters"].items()]
    rows += [(f"records {name}", str(count)) for name, count in value["data"]["counts"].items()]
    facts(console, f"{value['method']} ({value['variant']}) → {escape(value['adapter'])}", rows)
    for item in value.get("calibration") or ():
        verb = "refuses" if item["what"] == "detector" else "opens for"
        caught = "" if item["recall"] is None else f" and {100 * item['recall']:.1f} % of harmful"
        harmless = f"{100 * item['false_positive_rate']:.1f} % of harmless"
        console.print(f"On calibration records, the {item['what']} {verb} {harmless}{caught} requests.")
    if budget := value.get("budget"):
        console.print(escape(promised(budget)))
    if sweep := value["sweep"]:
        best, undefended = sweep["best"], sweep["undefended"]
        console.print(
            f"Chosen from {len(sweep['trials'])} settings on calibration records: attack success "
            f"{100 * undefended['attack_success']:.1f} → {100 * best['attack_success']:.1f} %, over-refusal "
            f"{100 * undefended['over_refusal']:.1f} → {100 * best['over_refusal']:.1f} %, exact answers "
            f"{100 * undefended['exact']:.1f} → {100 * best['exact']:.1f} %."
        )
        if best["attack_success"] >= undefended["attack_success"]:
            console.print("[yellow]No setting stopped an attack; the cheapest was taken.[/yellow]")
        elif not sweep["within_cost"]:
            console.print(
                "[yellow]No setting that stops attacks kept the allowed cost; the cheapest was taken.[/yellow]"
            )


def promised(budget: dict[str, Any]) -> str:
    """What a fit under a budget promises, as a sentence; ``budget`` is the attachment."""
    units = {"group": "groups", "category": "categories", "record": "records"}[budget["unit"]]
    kept = " and ".join(
        f"{one['what']} of at most {100 * one['budget']:g} % ({100 * one['observed']:.1f} % on these, "
        f"bound {100 * one['bound']:.1f} %)"
        for one in budget["kept"]
    )
    return (
        f"Budget kept with confidence {budget['confidence']:g} on new {units}, by {budget['groups']} of calibration: "
        f"{kept}."
    )
