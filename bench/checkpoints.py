"""Kinds of checkpoints with inspect, fit and export: ``python bench/checkpoints.py OUT [--kind NAME …]``.

A tiny LLaVA with random weights is brought into each form that checkpoints come in (``bench/zoo/kinds.py``). A cell
says ``works``, or what safetykit says instead; for an export that parity held. What bitsandbytes makes is left out
where it is missing. The other kinds are made without their packages, and say which are missing.

Writes OUT/checkpoints.json after every kind and OUT/checkpoints.md at the end; an interrupted run goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetykit.adapters.errors import SafetykitError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench import zoo
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table
from safetykit.bench.zoo.kinds import KINDS
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.commands.inspect import describe
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.vlm import VLM

WORKS = "works"
RECORDS = 48
_PACKAGES = ("bitsandbytes", "compressed_tensors", "gptqmodel")


def main(given: Sequence[str] | None = None) -> None:
    """Fill what is missing of the table, then print it."""
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args(given)
    one_thread()
    path = options.out / "checkpoints.json"
    found = read_results(path)
    with TemporaryDirectory() as work:
        plain = zoo.build("llava", Path(work) / "plain")
        for kind in options.kind or KINDS:
            if kind not in found:
                say(kind)
                found[kind] = tried(kind, plain, Path(work))
                write_results(path, found)
    write_table(options.out / "checkpoints.md", table(found))


def tried(kind: str, plain: Path, work: Path) -> dict[str, str]:
    """What each command makes of a kind."""
    folder = work / kind.replace(" ", "-")
    try:
        folder = KINDS[kind](plain, folder)
    except ImportError as error:
        return {"made": f"not made here: {str(error).splitlines()[0]}"}
    out = work / "export"
    steps: dict[str, Callable[[], Any]] = {
        "inspect": lambda: describe(str(folder)),
        "fit": lambda: VLMGuard(allow_constant_gate=True).fit(VLM.from_pretrained(folder), records()),
        "export": lambda: export_onnx(folder, [], out),
    }
    cells = {}
    for name, step in steps.items():
        try:
            done = step()
            cells[name] = f"{WORKS}: {done['parameters']:,} parameters" if name == "inspect" else WORKS
        except SafetykitError as error:
            cells[name] = str(error).replace(str(folder), "FOLDER")
    shutil.rmtree(out, ignore_errors=True)
    return cells


def records() -> list[Any]:
    return subset(load_records(data_path("reference"), ("fit", "calibration")), RECORDS)


def table(found: dict[str, dict[str, str]]) -> str:
    """Markdown: one row a kind; refusals are numbered below."""
    notes: list[str] = []

    def cell(text: str) -> str:
        if text.startswith(WORKS):
            return text
        if text not in notes:
            notes.append(text)
        return f"no [{notes.index(text) + 1}]"

    rows = ["| kind | inspect | fit | export |", "|---|---|---|---|"]
    for kind in [one for one in KINDS if one in found]:
        cells = found[kind]
        texts = (
            [cells["made"]] * 3
            if "made" in cells
            else [cells.get(one, "not tried") for one in ("inspect", "fit", "export")]
        )
        rows.append(f"| {kind} | {' | '.join(map(cell, texts))} |")
    there = [name for name in _PACKAGES if find_spec(name)]
    listed = [f"{at}. {note}" for at, note in enumerate(notes, 1)]
    return "\n".join([*rows, "", *listed, "", f"Installed: {', '.join(there) or 'no package that quantises'}.", ""])


if __name__ == "__main__":
    run(main)
