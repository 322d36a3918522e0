"""Every family with every method in every mode: ``python bench/matrix.py OUT [--family NAME …] [--threads 1]``.

For each family a tiny checkpoint with random weights is built from its real configuration and processor classes
(``bench/zoo``), each method is fitted on it, and each way of shipping the adapter goes through
:func:`export_onnx` with its parity suite, decisions over records included. A cell is the largest error of a logit as a
share of the largest logit, with the decisions that flipped, or the reason why there is none. Random weights say whether
the export computes what PyTorch computes, and nothing about safety.

Writes OUT/matrix.json after every cell and OUT/matrix.md at the end; an interrupted run goes on where it was. Several
processes may share OUT if their families differ.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.errors import SafetykitError
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.registry import get_method
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.tga.settings import TGA
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench import zoo
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, write_results, write_table
from safetykit.export.manifest import Mode, Precision
from safetykit.export.parity.report import ParityReport
from safetykit.export.parity.tolerances import TOLERANCES
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.write import write_own
from safetykit.toolkit.alignment import Aligner
from safetykit.toolkit.commands.fit_one import fit_with
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.families import titles
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import Workbench, refusal_of

REFUSAL = "sorry, i can not help with that."  # random weights have none of their own
COLUMNS: dict[str, tuple[Precision, Mode]] = {
    "bake": ("fp32", "bake"),
    "fold": ("fp32", "fold"),
    "hot-swap": ("fp32", "hot-swap"),
    "fp16": ("fp16", "bake"),
    "int4": ("int4", "bake"),
}
FIT, TEST, CAPTIONS = 96, 12, 48  # records; captioned pictures
# A random network with more gain is chaotic: what fp16 rounds in the first layer has grown past any limit at the last,
# in PyTorch as in ONNX Runtime.
GAIN = 1.0


def vlm_guard(vlm: VLM, records: Sequence[Record], _: Path) -> Adapter:
    return VLMGuard(layers=(vlm.base.n_layers - 1,), phase="both", allow_constant_gate=True).fit(vlm, records)


def care(vlm: VLM, records: Sequence[Record], _: Path) -> Adapter:
    layers = tuple(range(vlm.base.n_layers))
    given = {
        "layers": layers,
        "rank": 4,
        "fusion": "sequential",
        "site": "mlp",
        "selection": "none",
        "contrast": "label",
    }
    return fit_with(get_method("care"), Workbench(vlm, records), given)


def sasa(vlm: VLM, records: Sequence[Record], _: Path) -> Adapter:
    return SASA(safety_layer=0, fused_layer=vlm.base.n_layers - 1).fit(
        SecondPass(vlm), records, refusal_of(vlm, records, REFUSAL)
    )


def one_pass(vlm: VLM, records: Sequence[Record], _: Path) -> Adapter:
    return OnePassProbe(fused_layer=vlm.base.n_layers - 1).fit(
        SecondPass(vlm), records, refusal_of(vlm, records, REFUSAL)
    )


def tga(vlm: VLM, _: Sequence[Record], work: Path) -> Adapter:
    captions = load_captions(captions_path("reference"))
    aligner = Aligner(vlm, captions[:: len(captions) // CAPTIONS][:CAPTIONS], work=work)
    adapter = TGA(variant="lora", steps=8, batch_size=8, rank=4).fit(aligner)
    aligner.finish()
    return adapter


METHODS: dict[str, Callable[[VLM, Sequence[Record], Path], Adapter]] = {
    "VLM-Guard": vlm_guard,
    "CARE": care,
    "SASA": sasa,
    "one-pass": one_pass,
    "TGA": tga,
}


def main(given: Sequence[str] | None = None) -> None:
    """Fill what is missing of the matrix, then print it."""
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=zoo.NAMES, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--again", choices=COLUMNS, action="append", default=[], help="columns to measure again")
    parser.add_argument("--work", type=Path, help="for checkpoints and exports; OUT/work by default")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(given)
    one_thread()
    if not options.table:
        for family in options.family or zoo.NAMES:
            measure(family, options.method or METHODS, options.again, options.out, options.work or options.out / "work")
    found = {path.stem: json.loads(path.read_text()) for path in sorted((options.out / "matrix").glob("*.json"))}
    text = table(found)
    write_atomic(options.out / "matrix.json", canonical_json(found))
    write_table(options.out / "matrix.md", text)


def measure(family: str, methods: Sequence[str], again: Sequence[str], out: Path, work: Path) -> None:
    """One family; its cells go into OUT/matrix/FAMILY.json one by one."""
    path, work = out / "matrix" / f"{family}.json", work / family
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: dict[str, dict[str, Any]] = read_results(path)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").is_dir():
        zoo.build(family, work / "model", GAIN)
    vlm = VLM.from_pretrained(work / "model")
    records, test = chosen()
    for method in methods:
        row = cells.setdefault(method, {})
        adapter: Adapter | None = None
        for column in ("fit", *COLUMNS):
            if column in row and column not in again and column != "fit":
                continue
            if column != "fit" and adapter is None:
                continue  # there was nothing to ship; the reason stands under "fit"
            started = time.perf_counter()
            try:
                if column == "fit":
                    adapter = METHODS[method](vlm, records, work / "aligning")
                    row[column] = {"passed": True}
                else:
                    row[column] = shipped(vlm, adapter, column, test, work)
            except SafetykitError as error:
                row[column] = {"passed": False, "reason": str(error).splitlines()[0]}
            except Exception as error:
                row[column] = {
                    "passed": False,
                    "reason": f"{type(error).__name__}: {error}".splitlines()[0],
                    "bug": True,
                }
            row[column]["seconds"] = round(time.perf_counter() - started, 1)
            print(family, method, column, json.dumps(row[column]), file=sys.stderr, flush=True)
            write_results(path, cells)


def chosen() -> tuple[list[Record], list[Record]]:
    """Records to fit on, harmful and harmless of every carrier, and a few to decide on."""
    everything = load_records(data_path("reference"))
    pairs = {record.id: record for record in everything}
    kept: dict[str, Record] = {}
    for split, count in (("fit", FIT), ("calibration", FIT // 2)):
        for record in subset([record for record in everything if record.split == split], count):
            kept[record.id] = record
            if record.pair in pairs:
                kept[record.pair] = pairs[record.pair]
    return list(kept.values()), subset([record for record in everything if record.split == "test"], TEST)


def shipped(vlm: VLM, adapter: Adapter, column: str, test: Sequence[Record], work: Path) -> dict[str, Any]:
    """Export one adapter in one way; its base graphs are kept for the next."""
    precision, mode = COLUMNS[column]
    base = work / f"base-{precision}"
    if not base.is_dir():
        from safetykit.adapters.artifact.output import atomic_folder

        with atomic_folder(base) as folder:
            write_own(vlm, folder, precision, lambda _: None)
    out = work / "export"
    report = export_onnx(
        vlm,
        [adapter],
        out,
        base_onnx=base,
        precision=precision,
        mode=mode,
        records=test,
        max_new_tokens=8,
        overwrite=True,
    ).parity
    shutil.rmtree(out)
    return {
        "passed": report.passed,
        "error": _largest(report, "logits"),
        "drift": _largest(report, "drift"),
        "flips": len(report.flips),
        "checks": len(report.checks),
    }


def _largest(report: ParityReport, kind: str) -> float | None:
    """Largest error of the checks of a kind, as a share of the reference's size."""
    checks = [check for check in report.checks if check.kind == kind]
    return max((check.error / check.scale for check in checks if check.scale), default=None)


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The matrix in Markdown: one line a family, then every cell, with its reasons as footnotes."""
    limit, half = (TOLERANCES[precision].logits.relative for precision in ("fp32", "fp16"))
    notes: list[str] = []
    heads = [name for name in titles() if name in found]
    short = ["| family | fit | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    full = ["| family | method | fit | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for family in heads:
        rows, title = found[family], titles()[family]
        short.append(f"| {title} | " + " | ".join(_worst(rows, column) for column in ("fit", *COLUMNS)) + " |")
        for method, row in rows.items():
            cells = [_cell(row.get(column), notes) for column in ("fit", *COLUMNS)]
            full.append(f"| {title} | {method} | {' | '.join(cells)} |")
    return f"""\
Largest error of a logit as a share of the largest logit, PyTorch against ONNX Runtime, over prefill and cached steps,
batch 1 and padded batches, with and without pictures (limit {limit:g}, at fp16 {half:g}). One line a family: methods
that passed, and the largest error among them.

{chr(10).join(short)}

<details><summary>Every method</summary>

In brackets the decisions that flipped, of {TEST}. int4 is compared with PyTorch on the graph's own weights; after → the
difference from the checkpoint, which is what rounding the weights of so small a random model to 4 bits costs. SASA has
nothing to fold: its branch stays a branch.

{chr(10).join(full)}

{chr(10).join(f"{at}. {note}" for at, note in enumerate(notes, 1))}

</details>
"""


def _worst(rows: dict[str, dict[str, Any]], column: str) -> str:
    """How many methods passed, with the largest error among them."""
    values = [row[column] for row in rows.values() if column in row]
    good = [value for value in values if value["passed"]]
    errors = [value["error"] for value in good if value.get("error") is not None]
    return f"{len(good)}/{len(rows)}" + (f", {max(errors):.0e}" if errors else "")


def _cell(value: dict[str, Any] | None, notes: list[str]) -> str:
    if value is None:
        return "–"
    if not value["passed"]:
        reason = value["reason"].partition(". Export with")[0]
        reason = re.sub(r"\d+ of \d+ interventions cannot be folded: intervention \d+ ", "", reason)
        if reason not in notes:
            notes.append(reason)
        return f"no [{notes.index(reason) + 1}]"
    if "error" not in value:
        return "yes"
    error = "exact" if value["error"] is None else f"{value['error']:.0e}"
    drift = f" → {value['drift']:.0e}" if value.get("drift") is not None else ""
    return f"{error} ({value['flips']}){drift}"


if __name__ == "__main__":
    run(main)
