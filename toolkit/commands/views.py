"""What a person sees on the terminal: one function per command, from the same value as ``--json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_METRICS = (
    ("attack_success", "attack success"),
    ("refused", "refused"),
    ("over_refusal", "over-refusal"),
    ("exact", "exact answers"),
)


def _facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A title over name/value lines."""
    console.print(f"[bold]{title}[/bold]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}[/dim]", value)
    console.print(table)


def _figures(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(("", *columns)):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{100 * rate['rate']:.1f} % [dim]({100 * rate['low']:.0f}–{100 * rate['high']:.0f}, n={rate['n']})[/dim]"


def inspect(console: Console, value: dict[str, Any]) -> None:
    """`safetykit inspect`."""
    plain = [site for site in value["sites"] if not site.startswith("decoder.")]
    layers = f"decoder.layers.0 … decoder.layers.{value['n_layers'] - 1} (each with .attn and .mlp)"
    export = value["export"]
    rows = [
        ("architecture", value["architecture"]),
        ("decoder", f"{value['n_layers']} layers of width {value['d_model']}, vocabulary {value['vocabulary']}"),
        ("parameters", f"{value['parameters']:,} ({value['dtype']})"),
        *((name, part or "none") for name, part in value["parts"].items()),
        ("sites", f"{layers}, {', '.join(plain)}"),
        ("fingerprint", value["fingerprint"]),
        ("export", f"yes, as {export['family']}" if export["supported"] else f"no: {escape(export['reason'])}"),
    ]
    if value["model_organism"]:
        rows.append(("note", "a model organism: its figures say nothing about large models"))
    _facts(console, escape(value["path"]), rows)


def fit(console: Console, value: dict[str, Any]) -> None:
    """`safetykit fit`."""
    rows = [(name, escape(str(setting))) for name, setting in value["hyperparameters"].items()]
    rows += [(f"records {name}", str(count)) for name, count in value["data"]["counts"].items()]
    _facts(console, f"{value['method']} ({value['variant']}) → {escape(value['adapter'])}", rows)
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


def evaluation(console: Console, value: dict[str, Any]) -> None:
    """`safetykit eval`."""
    title = f"{escape(value['model'])}, split {value['split']}" + (", with a system prompt" if value["system"] else "")
    table = _figures(title, *(name for _, name in _METRICS), "detector AUROC")
    for row in value["rows"]:
        auroc = row["detector_auroc"]
        cells = [_rate(row["metrics"].get(metric)) for metric, _ in _METRICS]
        table.add_row(row["group"], *cells, "–" if auroc is None else f"{auroc:.3f}")
    console.print(table)
    console.print(
        "[dim]Shares with Wilson 95 % intervals. Look-alikes are restricted things asked about harmlessly.[/dim]"
    )


def comparison(console: Console, value: dict[str, Any]) -> None:
    """Before and after, per carrier; the groups within carriers are left to the card."""
    table = _figures("Before → after (the exported model)", "attack success", "over-refusal", "exact answers")
    after = {row["group"]: row["metrics"] for row in value["after"]["rows"]}
    for row in value["before"]["rows"]:
        if "/" in row["group"]:
            continue
        cells = []
        for metric in ("attack_success", "over_refusal", "exact"):
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
    worst = max((check["error"] for check in value["checks"] if check["kind"] == "logits"), default=0.0)
    console.print(
        f"Parity {verdict}: {len(value['checks'])} checks, largest logit error {worst:.1e} over "
        f"{value['steps']} cached steps, {len(value['flips'])} decisions flipped ({value['precision']})."
    )
    for check in value["checks"]:
        if not check["passed"]:
            console.print(
                f"  [red]{check['kind']}[/red] {escape(check['case'])}: {check['error']:.3g} > {check['limit']:.3g}"
            )


def export(console: Console, value: dict[str, Any]) -> None:
    """`safetykit export`."""
    if value["comparison"]:
        comparison(console, value["comparison"])
    parity(console, value["parity"])
    console.print(
        f"Export: {escape(value['folder'])}\nCard:   {escape(value['card'])}\nReport: {escape(value['report'])}"
    )


def latency(console: Console, value: dict[str, Any]) -> None:
    """Ratios baked/unmodified beside the A/A control."""
    for phase in ("prefill", "decode"):
        found = value[phase]
        ratio, control = found["ratio"], found["control"]
        console.print(
            f"Latency {phase}: baked/unmodified {ratio['value']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}), "
            f"A/A control {control['value']:.3f} ({control['low']:.3f}–{control['high']:.3f}): {found['verdict']}."
        )


def demo(console: Console, value: dict[str, Any]) -> None:
    """`safetykit demo`: one screen."""
    console.print(
        f"[bold]safetykit demo[/bold]: {value['adapter']['method']} ({value['adapter']['variant']}) on the reference "
        f"VLM `{value['checkpoint']}`, a model organism.\n"
    )
    comparison(console, value["comparison"])
    parity(console, value["parity"])
    latency(console, value["latency"])
    console.print(
        f"\nExport: {escape(value['folder'])}\nCard:   {escape(value['card'])}\nReport: {escape(value['report'])}"
    )
    console.print(f"[dim]{value['seconds']:.0f} s in all. Now ask it: {escape(value['try'])}[/dim]")


def verify(console: Console, value: dict[str, Any]) -> None:
    """`safetykit verify`."""
    console.print(f"{escape(value['folder'])}: {value['files']} files match the manifest ({value['kind']}).")
    if value["card"] is not None:
        console.print("The card and the report say what their data say.")
    if value["parity"]:
        parity(console, value["parity"])
    if value["swap"]:
        console.print("With the swapped adapter, and after it was taken out again:")
        parity(console, value["swap"])


def answers(console: Console, value: list[dict[str, Any]]) -> None:
    """`safetykit run`: the answers alone, one per line."""
    for item in value:
        console.print(item["text"], markup=False, soft_wrap=True)


def card(console: Console, value: dict[str, Any]) -> None:
    """`safetykit card`."""
    verb = "match their data" if value["checked"] else "written"
    console.print(f"{escape(value['card'])} and {escape(value['report'])}: {verb}.")


def doctor(console: Console, value: dict[str, Any]) -> None:
    """`safetykit doctor`."""
    rows = [*value["versions"].items(), (value["onnxruntime"]["package"], value["onnxruntime"]["version"])]
    for name, starts in value["providers"].items():
        rows.append(
            (name, "[green]starts[/green]" if starts else "[red]listed, but a session does not compute with it[/red]")
        )
    _facts(console, f"Python {value['python']} on {value['platform']}", rows)
