"""Every image-text-to-text type of transformers: ``python bench/types.py OUT [--type NAME …] [--table]``.

For each type that transformers maps a tiny checkpoint with random weights is made from its real configuration and
processor classes (``bench/_types``), or its family's (``bench/zoo``). Then: inspect; logits of a padded batch against
``model.forward`` on what the processor alone makes of each request, as a share of the largest logit; greedy answers
against ``model.generate``; at how many branch sites input + attention + MLP is the block's output; a fit of VLM-Guard
and of one-pass; an evaluation with both; the base graphs, their largest error as a share of the largest logit, over
prefill and cached steps, padded batches, with and without pictures; both adapters in them, past the parity gate with
its decisions. A type that does not has its reason.

Writes OUT/types.json after every type and OUT/types.md at the end; an interrupted run goes on where it was.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForImageTextToText

from safetykit.adapters.errors import SafetykitError
from safetykit.bench._types.building import NAMES, NotBuilt, build, config_class
from safetykit.bench._types.measuring import COLUMNS, LARGEST, TEST, measured
from safetykit.bench.matrix import GAIN as STEADY
from safetykit.bench.matrix import chosen
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table
from safetykit.bench.zoo.common import GAIN
from safetykit.toolkit.data.records import subset
from safetykit.toolkit.families.trial import ELSEWHERE
from safetykit.toolkit.model.kinds import require_decoder
from safetykit.toolkit.model.parts import require_text
from safetykit.toolkit.model.reasons import reason_of

STRICT = 1e-5
_RUNS = ("inspect", "vlm-guard", "one-pass", "eval")  # what a type needs to count as one that runs


def main(given: Sequence[str] | None = None) -> None:
    """Fill what is missing of the table, then print it."""
    parser = arguments(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=NAMES, action="append")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(given)
    one_thread()
    path = options.out / "types.json"
    found = read_results(path)
    if not options.table:
        for name in options.type or NAMES:
            if name not in found or options.type:
                say(name)
                found[name] = one(name)
                write_results(path, found)
    write_table(options.out / "types.md", table(found))


def one(name: str) -> dict[str, Any]:
    """The cells of one type; ``built`` says why there is no checkpoint."""
    cells: dict[str, Any] = {}
    with TemporaryDirectory() as work:
        gain = GAIN.set(STEADY)
        try:
            folder = build(name, Path(work) / "model")
        except NotBuilt as error:
            return {"built": {"passed": False, "reason": refused(name) or f"{error}."}}
        except Exception as error:  # of configurations that do not get along, transformers may raise anything
            said = f"no small checkpoint was made of it: {reason_of(error)}"
            return {"built": {"passed": False, "reason": refused(name) or said}}
        finally:
            GAIN.reset(gain)
        records, test = chosen()
        try:
            measured(folder, records, subset(test, TEST), cells.__setitem__)
            for cell in cells.values():
                cell |= {"reason": cell["reason"].replace(str(folder), "FOLDER")} if "reason" in cell else {}
        except Exception as error:  # a bug of ours or of transformers, which the table must show
            cells["loads"] = {
                "passed": False,
                "reason": f"{type(error).__name__}: {reason_of(error)}",
                "bug": True,
            }
    gc.collect()
    return cells


def refused(name: str) -> str | None:
    """Why safetykit refuses the type by its configuration alone; None if it does not."""
    try:
        config = config_class(name)()
        require_decoder(config)
        require_text(AutoModelForImageTextToText._model_mapping[type(config)])
    except SafetykitError as error:
        return error.message
    except Exception:  # the configuration has no default
        return None
    return None


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row a type; reasons are numbered below."""
    notes: list[str] = []
    heads = ("type", *COLUMNS)
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, cells in sorted(found.items()):
        failed = next((cells[key] for key in ("built", "loads") if key in cells), None)
        values = [_cell(cells.get(column, failed), column, notes) for column in COLUMNS]
        rows.append(f"| {name} | {' | '.join(values)} |")
    runs = sum(all(cells.get(key, {}).get("passed") for key in _RUNS) for cells in found.values())
    counts = {key: sum(cells.get(key, {}).get("passed", False) for cells in found.values()) for key in COLUMNS}
    errors = [cells["export"]["error"] for cells in found.values() if "error" in cells.get("export", {})]
    strict = sum(error <= STRICT for error in errors)
    lines = [
        f"Of {len(found)} types {runs} are inspected, fitted and evaluated; {counts['logits']} have the logits of",
        f"`model.forward` to 3e-6 of the largest, {counts['answers']} the answers of `model.generate`, and",
        f"{counts['branches']} branch sites. {counts['export']} have an own export, within {LARGEST:g} of the largest",
        f"logit as the parity gate asks, {strict} to {STRICT:g}; {counts['baked']} had VLM-Guard and one-pass in it.",
        "",
        *rows,
        "",
        *(f"{at}. {note}" for at, note in enumerate(notes, 1)),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, Any] | None, column: str, notes: list[str]) -> str:
    if value is None:
        return "–"
    if not value["passed"]:
        reason = value["reason"].partition(" Did you mean")[0].partition(f" {ELSEWHERE}")[0]
        if column == "export" and reason.startswith("safetykit has no base export for the architecture"):
            reason = f"Not exported: {reason.partition(': ')[2]}"
        if reason not in notes:
            notes.append(reason)
        return f"no [{notes.index(reason) + 1}]"
    if "error" in value:
        return f"{value['error']:.0e}" if value["error"] else "exact"
    if "factor" in value:
        return f"{value['sites']}, times {value['factor']:g}"
    return str(value["sites"]) if "sites" in value else "yes"


if __name__ == "__main__":
    run(main)
