"""The methods beside each other: one table per checkpoint, of models exported to ONNX and measured on the test split.

    python bench/summary.py [--from OUT]

Prints the table of bench/results/summary.json, and writes it to summary.md beside it. With ``--from`` the figures are
first read again from OUT/{vlm_guard,care,sasa,tga,stack}.json, which the benchmarks of those names write; they hold
every trial and are not kept in the repository. Figures of files that are not in OUT stay. ``settings`` are what sweeps
chose for each arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.bench.skeleton import CHECKPOINTS, arguments, percent, read_results, run, write_results, write_table

RESULTS = Path(__file__).parent / "results"
GROUPS = ("text", "image", "text+image", "typographic", "image/rendering-unseen")
METRICS = ("over_refusal", "exact")
# Name in the table, file, key of its arms, arm; None: the one that the sweep chose.
ARMS = (
    ("undefended", "vlm_guard", "variants", "undefended"),
    ("VLM-Guard, `steer`", "vlm_guard", "variants", "steer"),
    ("CARE, chosen", "care", "variants", None),
    ("SASA", "sasa", "detectors", "SASA, exported"),
    ("one-pass probe", "sasa", "detectors", "one-pass probe"),
    ("TGA, `lora`", "tga", "arms", "lora"),
    ("TGA, `projector`", "tga", "arms", "projector"),
    ("TGA `lora` and SASA, stacked", "stack", "variants", "TGA + SASA"),
)


def chosen(found: dict[str, Any]) -> str:
    """The arm whose setting is the sweep's best."""
    best = found["sweep"]["best"]
    name = f"{best['variant']} {best['fusion']}"
    if name not in found["variants"]:
        raise SystemExit(f"The sweep's best, {name}, was not measured.")
    return name


def gather(folder: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """What the table and the reader need of the benchmarks' own results.

    Args:
        kept: what was gathered before; it stands for the files that are not in ``folder``.
    """
    files = {
        file: read_results(path)
        for file in dict.fromkeys(file for _, file, _, _ in ARMS)
        if (path := folder / f"{file}.json").is_file()
    }
    table, settings = kept.get("table", {}), kept.get("settings", {})
    for checkpoint in CHECKPOINTS:
        arms = table.setdefault(checkpoint, {})
        for title, file, key, arm in ARMS:
            if file not in files:
                continue
            found = files[file][checkpoint]
            rows = found[key][arm or chosen(found)]["rows"]
            rates = {group: rows[group]["metrics"]["attack_success"] for group in GROUPS}
            rates |= {metric: rows["all"]["metrics"][metric] for metric in METRICS}
            arms[title] = rates
    for file, key in dict.fromkeys((file, key) for _, file, key, _ in ARMS):
        if "sweep" in files.get(file, {}).get(CHECKPOINTS[0], ()):
            settings[file] = {
                checkpoint: {
                    arm: found["setting"] for arm, found in files[file][checkpoint][key].items() if "setting" in found
                }
                for checkpoint in CHECKPOINTS
            }
    return {"table": table, "settings": settings}


def table(results: dict[str, Any]) -> str:
    """Markdown: per checkpoint, a row an arm."""
    heads = [*(f"attack, {group}" for group in GROUPS), "over-refusal", "exact answers"]
    parts = []
    for checkpoint, arms in results["table"].items():
        lines = [f"**`{checkpoint}`**", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for title, _, _, _ in ARMS:
            cells = [percent(arms[title][column]) for column in (*GROUPS, *METRICS)]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--from", dest="source", type=Path, metavar="OUT", help="folder of the benchmarks' results")
    options = parser.parse_args(given)
    kept = RESULTS / "summary.json"
    if options.source:
        write_results(kept, gather(options.source, read_results(kept)))
    write_table(RESULTS / "summary.md", table(read_results(kept)))


if __name__ == "__main__":
    run(main)
