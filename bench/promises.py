"""Every promise of the threat model with the figure that shows it.

    python bench/promises.py -o OUT [--only NAME …] [--quick]

Each row is measured by a function of its own in ``bench/_promises`` and kept in OUT/NAME.json, so that an interrupted
run goes on where it was; ``--again`` measures the rows of ``--only`` once more. A row that fails to be measured says
so, and the others go on. OUT/promises.md is the table of all rows that are there. What most rows attack are an adapter
and an export of the reference VLM `mild`, which are made in OUT/work and kept.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetykit.bench._promises import answers, bases, documents, elsewhere, files, limits, sameness, serving, weakness
from safetykit.bench._promises.row import Figure, Place, Row
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table

_MODULES = (files, bases, sameness, weakness, documents, answers, limits, serving, elsewhere)
_ORDER = (
    *("fuzz", "corruption", "names", "bases", "signatures", "fits", "kills", "no-op", "parity", "teeth", "decisions"),
    *("card", "planted", "silent", "apart", "text", "limits", "drift", "launched", "exports"),
)
_FOUND = {row.name: row for module in _MODULES for row in module.ROWS}
ROWS: Mapping[str, Row] = {name: _FOUND[name] for name in _ORDER}


def measured(row: Row, place: Place) -> dict[str, Any]:
    """A row's figure with its seconds; one that breaks is a promise that was not shown."""
    began = time.monotonic()
    try:
        found = row.measure(place)
    except Exception as error:
        traceback.print_exc()
        found = Figure(f"not measured: {type(error).__name__}: {str(error)[:200]}", False)
    return {
        "measured": found.measured,
        "held": found.held,
        "failures": list(found.failures),
        "counts": dict(found.counts),
        "seconds": round(time.monotonic() - began, 1),
        "quick": place.quick,
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a row, in their order, and what did not hold by name."""
    lines = ["| promise | target | measured | held |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        if (found := results.get(name)) is None:
            lines.append(f"| {row.promise} (`{name}`) | {row.target} | not measured | – |")
            continue
        quick = " (`--quick`)" if found["quick"] else ""
        held = ("as far as tried" if found["quick"] else "yes") if found["held"] else "**no**"
        lines.append(f"| {row.promise} (`{name}`) | {row.target} | {_cell(found['measured'])}{quick} | {held} |")
    broken = {name: found for name, found in results.items() if name in ROWS and not found["held"]}
    if broken:
        lines += ["", "What did not hold, its first cases:", ""]
        lines += [
            f"- `{name}`: {_cell('; '.join(found['failures'][:4])) or 'see above'}" for name, found in broken.items()
        ]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main(given: Sequence[str] | None = None) -> int:
    """Measure what is not there yet, and write the table; 1 if a promise does not hold."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=f"rows: {', '.join(ROWS)}")
    parser.add_argument("--again", action="store_true", help="measure rows that are there once more")
    parser.add_argument("--quick", action="store_true", help="few cases a row, to see that it runs")
    options = parser.parse_args(given)
    one_thread()
    place = Place((options.out / "work").resolve(), quick=options.quick)
    for name in options.only or ROWS:
        path = options.out / f"{name}.json"
        if options.again or not path.is_file():
            say(name)
            write_results(path, measured(ROWS[name], place))
    results = {name: read_results(options.out / f"{name}.json") for name in ROWS}
    results = {name: found for name, found in results.items() if found}
    write_table(options.out / "promises.md", table(results))
    return int(any(not found["held"] for found in results.values()))


if __name__ == "__main__":
    run(main)
