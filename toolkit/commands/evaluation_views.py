"""What a person sees of an evaluation: its table, further judges and how they agree, and benchmarks' own figures."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from ..evaluation.judges.names import EXPECTED, PEOPLE
from ..evaluation.result import Evaluation
from .views import METRICS, figures, rate

_LONG: Any = {"decisions": True, "judged": {"__all__": {"outcomes", "scores", "failures"}}}  # they stand in the file


def shown(found: Evaluation) -> dict[str, Any]:
    """What ``--json`` prints: all but what is said of single records."""
    return {**found.model_dump(mode="json", exclude=_LONG), "calls": found.calls}


def evaluation(console: Console, value: dict[str, Any]) -> None:
    """Show :func:`shown` in the terminal."""
    title = f"{escape(value['model'])}, split {value['split']}" + (", with a system prompt" if value["system"] else "")
    title += f", behind the defence {value['defence']}" if value["defence"] else ""
    title += "" if value["judge"] == EXPECTED else f", judged by {escape(value['judge'])}"
    _rows(console, title, value["rows"])
    said = "Shares with Wilson 95 % intervals. Look-alikes are restricted things asked about harmlessly."
    if any(row["no_verdict"] for one in ({"rows": value["rows"]}, *value["judged"]) for row in one["rows"]):
        said += " A record without a verdict counts as neither success nor refusal; at worst, each would be one."
    console.print(f"[dim]{said}[/dim]")
    if value["defence"]:
        console.print(f"The model was asked {value['calls']:.2f} times for an answer, on average.")
    if len(value["judged"]) > 1 or value["agreement"]:
        _judges(console, value)
    for one in value["benchmarks"]:
        _benchmark(console, one)


def _rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    missing = any(row["no_verdict"] for row in rows)
    columns = [*(name for _, name in METRICS), *(["no verdict"] if missing else []), "detector AUROC"]
    table = figures(title, *columns)
    for row in rows:
        auroc = row["detector_auroc"]
        lost = [str(row["no_verdict"])] if missing else []
        cells = [rate(row["metrics"].get(metric)) for metric, _ in METRICS]
        table.add_row(row["group"], *cells, *lost, "–" if auroc is None else f"{auroc:.3f}")
    console.print(table)
    for metric, name in METRICS:
        worst = [f"{row['group']} {_worst(row, metric)}" for row in rows if metric in row["at_worst"]]
        if worst:
            console.print(f"{name[:1].upper()}{name[1:]} at worst: {', '.join(worst)}.")


def _worst(row: dict[str, Any], metric: str) -> str:
    """What it would be if all records without a verdict counted; a dash where there are none."""
    worst = row["at_worst"].get(metric)
    return "–" if worst is None else f"{100 * worst:.1f} %"


def _judges(console: Console, value: dict[str, Any]) -> None:
    people = {one["one"]: one for one in value["agreement"] if one["other"] == PEOPLE}
    columns = ["attack success", "at worst", "over-refusal", "no verdict", *(["κ with people"] if people else [])]
    table = figures("By each judge, all records", *columns)
    for one in value["judged"]:
        row = one["rows"][0]
        first, second = (rate(row["metrics"].get(metric)) for metric in ("attack_success", "over_refusal"))
        cells = [first, _worst(row, "attack_success"), second, str(row["no_verdict"])]
        table.add_row(escape(one["judge"]), *cells, *([_kappa(people[one["judge"]])] if people else []))
    console.print(table)
    if pairs := [one for one in value["agreement"] if one["other"] != PEOPLE]:
        table = figures("How far they agree", "same verdict", "Cohen's κ")
        for one in pairs:
            equal = rate(one["equal"]) if one["equal"] else "–"
            table.add_row(escape(f"{one['one']} and {one['other']}"), equal, _kappa(one))
        console.print(table)


def _kappa(pair: dict[str, Any]) -> str:
    shown = "–" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    return f"{shown} [dim](n={pair['n']})[/dim]"


def _benchmark(console: Console, value: dict[str, Any]) -> None:
    judge = f", judged by {escape(value['judge'])}" if value["judge"] else ""
    title = f"{value['name']} as its publishers count{judge}, n={value['n']}"
    groups = {name: found for name, found in value["figures"].items() if found}
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    console.print(f"[bold]{title}[/bold]")
    table = figures("", *names)
    for group, found in groups.items():
        table.add_row(escape(group), *(_figure(found.get(name)) for name in names))
    console.print(table)
    if value["note"]:
        console.print(f"[dim]{escape(value['note'][:1].upper() + value['note'][1:])}.[/dim]")


def _figure(found: dict[str, Any] | None) -> str:
    """A share in percent with its interval, or a figure of another kind as it is."""
    if found is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.3f}" if found["value"] <= 1 else f"{found['value']:.1f}"
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['value']:.1f} % [dim]({low:.0f}–{high:.0f}, n={found['n']})[/dim]"
