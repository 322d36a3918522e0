"""What a newcomer gets: `safetykit quickstart` on the reference VLM and on checkpoints, from nothing.

    python bench/quickstart.py -o OUT [--model NAME=CHECKPOINT …] [--records N] [--limit N] [--trials N]

Each is one command with a folder of its own in OUT, which goes on where it was interrupted. The table says per carrier
what was refused before, and what attacks and over-refusal were before and after; the time is that of one run from
nothing, by the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetykit.bench.skeleton import arguments, percent, read_results, run, say, write_results, write_table

REFERENCE = {"reference VLM `mild`": "reference:mild"}


def main(given: Sequence[str] | None = None) -> int:
    """Run what was not run, and write the table."""
    parser = arguments(__doc__, quick={"records": 96, "limit": 16, "trials": 2})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--model", action="append", default=[], help="NAME=CHECKPOINT, asked starter records; repeat")
    parser.add_argument("--records", type=int, default=2000, help="starter records")
    parser.add_argument("--limit", type=int, default=240, help="records that are asked, and that settings are tried on")
    parser.add_argument("--trials", type=int, default=24, help="settings that are tried")
    options = parser.parse_args(given)
    models = {**REFERENCE, **dict(one.split("=", 1) for one in options.model)}
    results = read_results(options.out / "quickstart.json")
    for name, model in models.items():
        if name not in results:
            typed = ["--limit", str(options.limit), "--trials", str(options.trials)]
            typed += [] if name in REFERENCE else ["--records", str(options.records)]
            say(f"quickstart of {name}")
            results[name] = quickstart(model, options.out / name.replace("`", "").replace(" ", "-"), typed)
            write_results(options.out / "quickstart.json", results)
    write_table(options.out / "quickstart.md", table(results))
    return 0


def quickstart(model: str, folder: Path, typed: Sequence[str]) -> dict[str, Any]:
    """What the command says, with the time it took and whether it began anew."""
    anew, began = not folder.exists(), time.monotonic()
    command = [sys.executable, "-m", "safetykit", "quickstart", model, "-o", str(folder), *typed, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    kept = ("undefended", "comparison", "fitted", "method", "stopped", "obstacle", "organism")
    return {
        **{name: found[name] for name in kept},
        "passed": found["parity"] and found["parity"]["passed"],
        "wall": round(time.monotonic() - began) if anew else None,
        "cores": len(os.sched_getaffinity(0)),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Per model what happened, and a row for each carrier."""
    lines = []
    for name, found in results.items():
        took = f"{found['wall']} s on {found['cores']} cores" if found["wall"] else "interrupted, so not timed"
        sweep = next((one["sweep"] for one in found["fitted"] if one["method"] == found["method"]), None)
        chosen = f", chosen from {sweep['trials']} settings" if sweep else ""
        what = f"{found['method']}{chosen}, parity passed" if found["passed"] else found["stopped"] or found["obstacle"]
        lines += [f"**{name}**: {what.rstrip('.')}; {took}.", ""]
        lines += ["| carrier | refused before | attacks before | attacks after | over-refusal before | after |"]
        lines += ["|---|---|---|---|---|---|"]
        after = (found["comparison"] or {"after": {"rows": []}})["after"]["rows"]
        defended = {row["group"]: row["metrics"] for row in after}
        for row in found["undefended"]["rows"]:
            if "/" in row["group"]:
                continue
            before, then = row["metrics"], defended.get(row["group"], {})
            cells = [before.get("refused"), before.get("attack_success"), then.get("attack_success")]
            cells += [before.get("over_refusal"), then.get("over_refusal")]
            lines.append(f"| {row['group']} | {' | '.join(map(percent, cells))} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
