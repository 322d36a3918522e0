"""Exports run by ``run_ort.py`` alone: ``python bench/standalone.py EXPORT… --python PYTHON [-o RESULTS]``.

PYTHON is the interpreter of an environment that has numpy, onnxruntime, tokenizers and Pillow, and neither torch nor
transformers nor safetykit, which is checked first. The same records are answered by EXPORT/run_ort.py there, and by
safetykit's runtime here, one by one and greedily. Counted are answers that are the same text, requests that both
refuse before generation, and the largest difference of a risk. Writes RESULTS and a table beside it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.errors import UsageError
from safetykit.bench.skeleton import arguments, read_results, run, write_results, write_table
from safetykit.export.layouts.prepare import PROGRAM
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.asking import request_of

_ABSENT = ("torch", "transformers", "safetykit")
_ALONE = f"import importlib.util; print([name for name in {_ABSENT!r} if importlib.util.find_spec(name)])"


def measure(export: Path, python: str, records: Sequence[Record], max_new_tokens: int) -> dict[str, Any]:
    """Answers of both to ``records``."""
    vlm = OnnxVLM.from_pretrained(export)
    ours = [vlm.generate([request_of(one)], max_new_tokens)[0] for one in records]
    theirs = alone(export, python, records, max_new_tokens)
    pairs = list(zip(ours, theirs, strict=True))
    threshold = vlm.detector.threshold if vlm.detector else 0.0
    risks = [abs(one.scores["risk"] + threshold - other["risk"]) for one, other in pairs if other["risk"] is not None]
    return {
        "methods": [info.method for info in vlm.manifest.adapters],
        "mode": vlm.manifest.mode,
        "records": len(records),
        "with pictures": sum(record.image is not None for record in records),
        "same text": sum(one.text == other["text"] for one, other in pairs),
        "refused by both": sum(one.refused and other["refused_by_detector"] for one, other in pairs),
        "refused by one": sum(one.refused != other["refused_by_detector"] for one, other in pairs),
        "largest risk difference": max(risks, default=None),
    }


def alone(export: Path, python: str, records: Sequence[Record], max_new_tokens: int) -> list[dict[str, Any]]:
    """What ``run_ort.py`` answers in another environment, which knows nothing of this one.

    Raises:
        UsageError: that environment has a package that the program must not need, or the program failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def called(*words: str) -> str:
        done = subprocess.run([python, "-I", *words], capture_output=True, text=True, env=environment, cwd="/")
        if done.returncode:
            raise UsageError(f"{python} {words[0]} failed: {done.stderr.strip()[-500:]}", "See its message.")
        return done.stdout

    if (there := called("-c", _ALONE).strip()) != "[]":
        raise UsageError(f"The environment of {python} has {there}.", "Make one without.")
    with tempfile.TemporaryDirectory() as name:
        lines = []
        for at, record in enumerate(records):
            line: dict[str, Any] = {"prompt": record.prompt}
            if (picture := record.picture()) is not None:
                line["image"] = str(Path(name) / f"{at}.png")
                picture.save(line["image"])
            lines.append(json.dumps(line))
        requests = Path(name) / "requests.jsonl"
        requests.write_text("\n".join(lines))
        words = ("--requests", str(requests), "--max-new-tokens", str(max_new_tokens))
        return [json.loads(line) for line in called(str(export.resolve() / PROGRAM), *words).splitlines()]


def table(results: dict[str, Any]) -> str:
    """A line an export."""
    heads = (
        "export",
        "mode",
        "records, with pictures",
        "same text",
        "refused by both, by one",
        "largest risk difference",
    )
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---" * 6 + "|")
    for name, found in results.items():
        risk = found["largest risk difference"]
        cells = (
            name,
            found["mode"],
            f"{found['records']}, {found['with pictures']}",
            str(found["same text"]),
            f"{found['refused by both']}, {found['refused by one']}",
            "–" if risk is None else f"{risk:.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--python", required=True, help="interpreter of the other environment")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench/results/standalone.json"))
    options = parser.parse_args(given)
    records = load_records(data_path("reference"), ["test"])
    random.Random(0).shuffle(records)
    results = read_results(options.out)
    for export in options.exports:
        results[export.name] = measure(export, options.python, records[: options.records], options.max_new_tokens)
        print(export.name, results[export.name], file=sys.stderr, flush=True)
        write_results(options.out, results)
    write_table(options.out.with_suffix(".md"), table(results))


if __name__ == "__main__":
    run(main)
