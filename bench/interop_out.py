"""Exports in other people's runtimes: ``python bench/interop_out.py EXPORT… [--records N] [-o RESULTS]``.

Each EXPORT, of the layout ``onnx``, is arranged for transformers.js and for GenAI, and the same records are answered
three times: by safetykit's runtime, by transformers.js in Node, and by ONNX Runtime GenAI. Printed as JSON, per export
and runtime: how many answers are the same token for token, and what they amount to. ``undefended`` is the same with
the graphs of ``--base``. Needs `npm ci --ignore-scripts` in bench/node, and onnxruntime-genai.

The answers compared are greedy and those of loops that know nothing of adapters: a detector acts through ``--enforce``.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.bench.runtimes import genai_answers, greedy, node_answers
from safetykit.bench.skeleton import arguments, run
from safetykit.export.layouts.arrange import arrange
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.evaluation.evaluate import Decision, tabulate
from safetykit.toolkit.evaluation.judge import judge
from safetykit.toolkit.model.asking import request_of

LAYOUTS = ("transformers.js", "genai")


def measure(export: Path, records: Sequence[Record], max_new_tokens: int) -> dict[str, Any]:
    """Answers of all runtimes to ``records``."""
    plain = OnnxVLM.from_pretrained(export, verify=False)
    requests = [request_of(record) for record in records]
    ours = [greedy(plain, request, max_new_tokens) for request in requests]
    manifest = plain.manifest
    found: dict[str, Any] = {
        "mode": manifest.mode,
        "precision": manifest.precision,
        "enforced": manifest.enforce,
        "gate_state": manifest.gate_state,
        "ops": sorted({item.op for item in (*manifest.interventions, manifest.branch) if item is not None}),
        "records": len(records),
        "with pictures": sum(request.image is not None for request in requests),
        "safetykit": counts(plain, records, ours),
    }
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "export"
            shutil.copytree(export, folder)
            arrange(folder, read_manifest(folder, verify=False), layout)
            arranged = OnnxVLM.from_pretrained(folder)
            if layout == "genai":
                theirs = genai_answers(arranged, requests, max_new_tokens)
            else:
                theirs = node_answers(arranged, requests, max_new_tokens, Path(name) / "job")
            same = sum(left == right for left, right in zip(ours, theirs, strict=True))
            found[layout] = {"same tokens": same, **counts(arranged, records, theirs)}
    return found


def counts(vlm: OnnxVLM, records: Sequence[Record], answers: Sequence[tuple[int, ...]]) -> dict[str, str]:
    """What answers amount to, as shares."""
    decisions = []
    for record, tokens in zip(records, answers, strict=True):
        text = vlm.inputs.decode(tokens)
        decisions.append(
            Decision(
                id=record.id,
                carrier=record.carrier,
                label=record.label,
                tags=record.tags,
                text=text,
                outcome=judge(record, text),
                scores={},
            )
        )
    metrics = tabulate(decisions)[0].metrics
    return {name: f"{rate.count}/{rate.n}" for name, rate in metrics.items()}


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--base", type=Path, help="Base export, answered without an adapter.")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(given)
    records = load_records(data_path("reference"), ["test"])
    random.Random(0).shuffle(records)
    records = records[: options.records]
    results: dict[str, Any] = {}
    if options.base:
        vlm = OnnxVLM.from_pretrained(options.base, verify=False)
        requests = [request_of(record) for record in records]
        answers = [greedy(vlm, request, options.max_new_tokens) for request in requests]
        results["undefended"] = counts(vlm, records, answers)
    for export in options.exports:
        results[export.name] = measure(export, records, options.max_new_tokens)
        print(export.name, results[export.name], file=sys.stderr, flush=True)
        if options.out:
            write_atomic(options.out, canonical_json(results))
    print(canonical_json(results).decode())


if __name__ == "__main__":
    run(main)
