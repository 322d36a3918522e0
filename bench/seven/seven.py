"""Every method on a deployed VLM: the papers' own settings and ours, side by side, exported, beside what papers report.

    python bench/seven/seven.py MODEL -o OUT --benchmark mm-safetybench=PATH --benchmark figstep=PATH \\
        --benchmark pope=PATH [--fit RECORDS] [--captions CAPTIONS] [--judge SPEC …] [--device cuda] [--precision fp16]

MODEL is a checkpoint on disk, such as LLaVA-1.5-7B, Qwen2.5-VL-7B or LLaVA-OneVision. A benchmark is KIND=PATH, where
PATH is the published folder as it was downloaded and KIND one of `safetykit data import --help`; ``records=PATH`` are
records as they are, and ``pgd=PATH`` those that `safetykit attack pgd` wrote. Methods are fitted on ``--fit``, records
with the splits `fit` and `calibration`, which must share nothing with the benchmarks; by default on those of `safetykit
data starter`. TGA needs ``--captions``, and is left out without them.

``arms.yaml`` says what is put on the model. Layers that a paper names for its model are carried over by depth. The
commands are those that a user types: `data import`, `data starter`, `compare`, and for each method `export --onnx`
with its parity and `verify`. What is finished in OUT is kept, and the same command goes on. The table has a row for
each method and benchmark, and what papers report beside it (``published.yaml``): other models, records and judges.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from safetykit.adapters.errors import UsageError
from safetykit.adapters.near import did_you_mean
from safetykit.bench.skeleton import arguments, percent, read_results, run, say, write_results, write_table
from safetykit.export.commands.comparison_run import planned
from safetykit.toolkit.comparison.grid import load_grid
from safetykit.toolkit.comparison.plan import Plan
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.shape import written_depth

_HERE = Path(__file__).parent
_OWN = ("records", "pgd")  # in the place of a kind: records as they are
_METRICS = ("attack_success", "over_refusal", "exact")


def arms_for(depth: int, captions: Path | None, chosen: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The arms of ``arms.yaml`` for a model of so many layers, with ``fit`` or ``stack``, ``settings`` and ``source``.

    Args:
        captions: without them arms that need captions are left out.
        chosen: only these; all of them if empty.

    Raises:
        UsageError: one of them is not in the file, or needs captions that are not given.
    """
    known: dict[str, dict[str, Any]] = yaml.safe_load((_HERE / "arms.yaml").read_text())
    for name in chosen:
        if name not in known:
            raise UsageError(f"There is no arm {name}.", did_you_mean(name, known) or f"There are {', '.join(known)}.")
        if known[name].get("needs") and captions is None:
            raise UsageError(f"{name} is fitted on captioned pictures.", "Add --captions.")
    kept = chosen or [name for name, arm in known.items() if captions is not None or not arm.get("needs")]
    return {name: {**known[name], "settings": _settled(known[name], depth)} for name in kept}


def _settled(arm: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The settings of an arm, its layers carried over to another depth: the middle of a layer keeps its place.

    Layers of one setting that lie above those of the one before stay above them.
    """
    scaled = dict(arm.get("scaled", {}))
    settings, of, above = dict(arm.get("settings", {})), scaled.pop("of", depth), -1
    for name, layers in scaled.items():
        there = sorted({min(depth - 1, max(above + 1, int((layer + 0.5) * depth / of))) for layer in layers})
        settings[name], above = there[0] if len(there) == 1 else ",".join(map(str, there)), there[-1]
    return settings


def grid_of(
    model: str, arms: Mapping[str, Mapping[str, Any]], records: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, Any]:
    """What `safetykit compare` is told."""
    loading = {name: getattr(options, name.replace("-", "_")) for name in ("device", "dtype", "device-map")}
    defences = {}
    for name, arm in arms.items():
        data = str(options.captions if arm.get("needs") else options.fit)
        if "stack" in arm:
            defences[name] = {"stack": [{**part, "data": data} for part in arm["stack"]]}
        else:
            defences[name] = {key: arm[key] for key in ("fit", "sweep", "settings") if arm.get(key)} | {"data": data}
    return {
        "title": f"Every method on {Path(model).name}",
        "models": {"model": {"path": model, **{name: value for name, value in loading.items() if value}}},
        "defences": defences,
        "benchmarks": {name: {"data": str(path), "limit": options.limit} for name, path in records.items()},
        "judges": options.judge or ["expected", "learned"],
        "max-new-tokens": options.max_new_tokens,
    }


def safetykit(*words: object) -> str:
    """What a command prints with ``--json``.

    Raises:
        UsageError: it failed; what it said is on stderr already.
    """
    typed = [str(word) for word in words]
    say(f"safetykit {' '.join(typed)}")
    done = subprocess.run([sys.executable, "-m", "safetykit", *typed, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UsageError(f"`safetykit {typed[0]}` failed with exit code {done.returncode}.", "See above.")
    return done.stdout


def imported(benchmarks: Sequence[str], out: Path, limit: int) -> dict[str, Path]:
    """Records of each benchmark, by its kind.

    Raises:
        UsageError: one is not KIND=PATH, is there twice, or cannot be read.
    """
    found: dict[str, Path] = {}
    for one in benchmarks:
        kind, equals, path = one.partition("=")
        if not equals or not kind or not path:
            raise UsageError(f"{one} is no KIND=PATH.", "Such as --benchmark figstep=./FigStep.")
        if kind in found:
            raise UsageError(f"{kind} is there twice.", "Name each benchmark once.")
        if kind in _OWN:
            found[kind] = data_path(path)
            continue
        found[kind] = out / "records" / kind
        if not found[kind].exists():
            safetykit("data", "import", kind, path, "-o", found[kind], "--split", "test", "--limit", limit)
    return found


def exported(plan: Plan, model: str, out: Path, precision: str) -> dict[str, dict[str, Any]]:
    """By arm what its export says of itself; kept for the next run."""
    kept = out / "exports.json"
    found: dict[str, dict[str, Any]] = read_results(kept)
    for arm in plan.arms:
        if not arm.adapters or arm.name in found:
            continue
        folder, adapters = out / "exports" / arm.name, [word for one in arm.adapters for word in ("--adapter", one)]
        told = json.loads(safetykit("export", model, "--onnx", *adapters, "-o", folder, "--precision", precision))
        safetykit("verify", folder)
        parity = json.loads((folder / "parity.json").read_text())
        found[arm.name] = {"passed": parity["passed"], "bytes": sum(one.stat().st_size for one in folder.iterdir())}
        say(f"{arm.name}: {told.get('folder', folder)}")
        write_results(kept, found)
    return found


def table(
    results: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], exports: Mapping[str, Mapping[str, Any]]
) -> str:
    """Every arm on every benchmark by every judge, and then what papers report."""
    lines = ["| benchmark | judge | method | attack success | over-refusal | exact answers | export |"]
    lines += ["|---|---|---|---:|---:|---:|---|"]
    for one in results["figures"]:
        if one["benchmark"] == "all":
            continue
        rates = next((row["metrics"] for row in one["rows"] if row["group"] == "all"), {})
        cells = [percent(rates.get(name)) for name in _METRICS]
        export = exports.get(one["arm"])
        said = "–" if export is None else "parity passed" if export["passed"] else "parity failed"
        lines.append(f"| {one['benchmark']} | {one['judge']} | {one['arm']} | {' | '.join(cells)} | {said} |")
    lines += ["", "Where the settings are from:", ""]
    lines += [f"- `{name}`: {arm['source']}; {_spelled(arm['settings'])}." for name, arm in arms.items()]
    benchmarks = {one["benchmark"] for one in results["figures"]}
    methods = {name.removesuffix("-published") for name in arms}
    reported = yaml.safe_load((_HERE / "published.yaml").read_text())
    mine = [one for one in reported if one["method"] in methods and one["benchmark"] in benchmarks]
    if mine:
        lines += ["", "As papers report it, on models, records and judges of their own:", ""]
        lines += ["| benchmark | method | model | judge | attack success before | after | source |"]
        lines += ["|---|---|---|---|---:|---:|---|"]
        keys = ("benchmark", "method", "model", "judge", "before", "after", "source")
        lines += ["| " + " | ".join(str(one[key]) for key in keys) + " |" for one in mine]
    return "\n".join([*lines, ""])


def _spelled(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "no settings of its own"


def main(given: Sequence[str] | None = None) -> int:
    """Do what is not done yet, and write the table."""
    parser = arguments(__doc__)
    parser.add_argument("model", help="checkpoint folder or id")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for records, adapters, exports, results")
    parser.add_argument("--benchmark", action="append", required=True, help="KIND=PATH; repeat")
    parser.add_argument("--fit", type=Path, help="records to fit on; by default those of `data starter`")
    parser.add_argument("--captions", type=Path, help="captioned pictures, for TGA")
    parser.add_argument("--arm", action="append", help="only this arm of arms.yaml; repeat")
    parser.add_argument("--judge", action="append", help="as for `eval`; repeat; by default expected, learned")
    parser.add_argument("--limit", type=int, default=500, help="records of each benchmark, spread over its groups")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer")
    for name in ("--device", "--dtype", "--device-map"):
        parser.add_argument(name, help="as for `safetykit fit`")
    parser.add_argument("--precision", default="fp16", help="of the exports")
    options = parser.parse_args(given)
    depth = written_depth(model_path(options.model))
    if depth is None:
        raise UsageError(f"{options.model} does not say how many layers it has.", "Name a checkpoint with config.json.")
    arms = arms_for(depth, options.captions, options.arm or ())
    options.out.mkdir(parents=True, exist_ok=True)
    records = imported(options.benchmark, options.out, options.limit)
    if options.fit is None:
        options.fit = options.out / "records" / "starter"
        if not options.fit.exists():
            safetykit("data", "starter", "-o", options.fit)
    grid = options.out / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_of(options.model, arms, records, options), sort_keys=False))
    comparison = options.out / "comparison"
    safetykit("compare", "--config", grid, "-o", comparison)
    plan = planned(load_grid(grid)[0], comparison, say)
    exports = exported(plan, options.model, options.out, options.precision)
    results = json.loads((comparison / "results.json").read_text())
    write_table(options.out / "seven.md", table(results, arms, exports))
    return int(not all(one["passed"] for one in exports.values()))


if __name__ == "__main__":
    run(main)
