"""`safetykit diagnose`. Registered by the command line; heavy imports happen when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...toolkit.commands.derived import takes
from ...toolkit.commands.options import Data, Json, Model, Overwrite
from ...toolkit.distributed.job import sharing
from ...toolkit.distributed.world import is_first
from .choices import DiagnoseOptions

if TYPE_CHECKING:
    from rich.console import Console


@sharing
@takes(DiagnoseOptions)
def diagnose(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the channel map and its plots.")],
    options: DiagnoseOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    from ...adapters.artifact.held import beside
    from ...adapters.artifact.names import located
    from ...adapters.artifact.output import claimed
    from ...toolkit.commands import console
    from ...toolkit.data.journal import require_journal
    from ...toolkit.data.records import load_records, require_pictures
    from ...toolkit.data.sources import data_path, model_path
    from ...toolkit.diagnosis import diagnose as run
    from ...toolkit.diagnosis.choosing import require_diagnosis
    from ...toolkit.diagnosis.run import known_identity
    from ...toolkit.distributed.output import by_first
    from ...toolkit.model.asking import require_answerable
    from ...toolkit.model.vlm import VLM
    from ..document.diagnosis_plots import diagnosis_plots

    journal = beside(located(out), "diagnosis.jsonl")
    with by_first(claimed(out, overwrite=overwrite, inputs=[model, data], spent=[journal])):
        records = load_records(data_path(data), ["fit"], **options.reading())
        require_pictures(records)
        require_answerable(model, records)
        if records.skipped:
            console.warn(records.told())
        path = model_path(model)
        asked: dict[str, Any] = {name: getattr(options, name) for name in ("budget", "pairs", "neurons")}
        require_journal(journal, known_identity(records, **asked, seed=options.seed, batch_size=options.rows))
        looked_at = require_diagnosis(path, records, batch_size=options.rows, **asked)
        with console.work("loading") as doing:
            vlm = VLM.from_pretrained(path, **options.loading())
            doing("diagnosing")
            found = run(
                vlm,
                records,
                **asked,
                seed=options.seed,
                progress=doing.count,
                journal_path=journal,
                looked_at=looked_at,
                say=console.note,
            )
            doing("drawing")
            plots: dict[str, bytes] = {}
            for item in diagnosis_plots(found.info):
                plots |= {f"{item.plot.tag}.png": item.png, f"{item.plot.tag}.svg": item.plot.svg.encode()}
            if is_first():
                found.save(out, overwrite=overwrite, beside=plots)
    value = {"map": str(out), **found.info.model_dump(mode="json")}
    then = console.command_line("fit", "care", model, "--data", data, "--map", out, "-o", "care")
    console.emit(value, as_json=as_json, human=_view, then=then)


def _view(console: Console, value: dict[str, Any]) -> None:
    """What a person sees: the layers found, effects by layer, the foremost neurons, the skipped layers."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
        for at, column in enumerate(columns):
            made.add_column(column, justify="left" if at == 0 else "right")
        return made

    layers, refusal = value["layers"], value["refusal"]
    console.print(f"[bold]Channel map[/bold] in {escape(value['map'])}")
    for modality, ranking in layers["critical"].items():
        console.print(f"critical layers, {modality} harm (most critical first): {', '.join(map(str, ranking))}")
    for name in ("safety", "fused"):
        console.print(f"{name} layer: {'not found' if layers[name] is None else layers[name]}")
    console.print(f"layers to align: {', '.join(map(str, layers['align'])) or 'not found'}")
    console.print(f"refusals open with {', '.join(map(repr, refusal['tokens']))}: {escape(repr(refusal['text']))}")
    for modality, effects in value["effects"].items():
        console.print(f"\n{len(effects['pairs'])} {modality} pairs, total effect {_estimate(effects['total'])} nats")
        shown = [site for site in effects["sites"] if site["positions"] == "last"]
        rows = table("NIE at the last prompt token, nats", "layer", "attention", "MLP", "block")
        for layer in sorted({site["layer"] for site in shown}):
            cells = {site["kind"]: _estimate(site["nie"]) for site in shown if site["layer"] == layer}
            rows.add_row(str(layer), cells["attn"], cells["mlp"], cells["block"])
        console.print(rows)
        if effects["neurons"]:
            rows = table("foremost neurons", "layer.neuron", "attribution", "exact NIE")
            for item in effects["neurons"][:8]:
                place = f"{item['layer']}.{item['neuron']}"
                rows.add_row(place, f"{item['attribution']:+.3f}", _estimate(item["nie"]))
            console.print(rows)
            if effects["rank_correlation"] is not None:
                console.print(f"rank correlation of attribution and exact NIE: {effects['rank_correlation']:.2f}")
    rows = table(f"skipped layers ({value['windows_on']})", "layers", "attack success", "change", "refused", "change")
    for window in value["windows"]:
        name = "–".join(map(str, window["layers"])) or "none"
        shares = [f"{100 * window[kind]['rate']:.1f} %" for kind in ("attack_success", "refused")]
        changes = [_estimate(window[f"{kind}_change"]) for kind in ("attack_success", "refused")]
        changes = changes if window["layers"] else ["", ""]
        rows.add_row(name, shares[0], changes[0], shares[1], changes[1])
    console.print(rows)


def _estimate(item: dict[str, float]) -> str:
    return f"{item['value']:+.2f} [dim]({item['low']:+.2f} to {item['high']:+.2f})[/dim]"
