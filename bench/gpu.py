"""The parity matrix and the latency on a GPU: ``python bench/gpu.py [MODEL] -o OUT.json [--adapter DIR ...]``.

For every precision (fp32, fp16), mode (bake, hot-swap) and adapter: an export whose parity runs under CUDA with bound
runs (the KV cache stays on the device), and the time of the export over its unmodified base, with an A/A control.
Under hot-swap the same export is also checked with another adapter swapped in. Adapters are those given, or two of
VLM-Guard fitted on the spot: at prefill, and in every phase with held gates. A session whose decoder leaves matrix
products, norms or attention to the CPU counts as failed.

Needs ONNX Runtime for CUDA (extra ``gpu``) and a CUDA device; without them it says so and ends with exit code 2.
``--quick`` runs one cell on the CPU, which shows that the script works and nothing about a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.errors import ParityFailed, SafetykitError, UsageError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench.skeleton import arguments, run
from safetykit.export.base.own import export_base
from safetykit.export.commands.doctor import examine
from safetykit.export.document.latency import measure_latency
from safetykit.export.manifest import LAYOUT, Mode, Precision
from safetykit.export.parity.report import ParityReport
from safetykit.export.parity.swap_check import check_swap
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.write import attends_in_one_node
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU, open_session, placement
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

PROVIDER = "CUDAExecutionProvider"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
MODES: tuple[Mode, ...] = ("bake", "hot-swap")
QUICK = {"provider": "CPUExecutionProvider", "precision": ["fp32"], "mode": ["bake"], "rounds": 5, "batch": 1}


def require(provider: str) -> dict[str, Any]:
    """What is installed, on a machine where sessions compute with ``provider``.

    Raises:
        UsageError: they do not.
    """
    found = examine()
    if not found["providers"].get(provider):
        working = ", ".join(name for name, works in found["providers"].items() if works)
        raise UsageError(
            f"ONNX Runtime computes with {working} here, not with {provider}, so nothing was measured.",
            "Run this on a machine with an NVIDIA GPU, with the extra `gpu` instead of `cpu`.",
        )
    return found


def fitted(vlm: VLM, data: str) -> dict[str, list[Adapter]]:
    """For each name an adapter and another of the same ops and sites, to be swapped in."""
    records = load_records(data_path(data), ["fit", "calibration"])
    made = {
        "VLM-Guard, prefill": {},
        "VLM-Guard, all phases, gates held": {"scope": "all", "phase": "both", "hold": True},
    }
    return {
        name: [
            VLMGuard(rank=rank, alpha=alpha, allow_constant_gate=True, **options).fit(vlm, records)
            for rank, alpha in ((2, 2.0), (4, 1.0))
        ]
        for name, options in made.items()
    }


def worst(report: ParityReport) -> dict[str, float]:
    """The largest error of each kind of check, over its limit."""
    found: dict[str, float] = {}
    for check in report.checks:
        share = check.error / check.limit if check.limit else float(check.error > 0)
        found[check.kind] = max(found.get(check.kind, 0.0), share)
    return found


def cell(
    vlm: VLM,
    adapters: list[Adapter],
    folder: Path,
    base: Path,
    precision: Precision,
    mode: Mode,
    requests: list[Request],
    provider: str,
    rounds: int,
) -> dict[str, Any]:
    """One export under ``provider``: parity, placement of its decoder's nodes, and latency."""
    out = folder / f"{precision}-{mode}"
    try:
        result = export_onnx(
            vlm, adapters[:1], out, precision=precision, mode=mode, base_onnx=base, providers=[provider], overwrite=True
        )
    except ParityFailed as error:
        return {"passed": False, "reason": str(error)}
    onnx_vlm = OnnxVLM.from_pretrained(out, [provider])
    found: dict[str, Any] = {"passed": True, "error_over_limit": worst(result.parity)}
    if mode == "hot-swap" and len(adapters) > 1:
        report = check_swap(vlm, onnx_vlm, adapters[1:])
        found |= {"swap_passed": report.passed, "swap_error_over_limit": worst(report)}
    if provider not in CPU:  # sessions record where nodes went only where they could have gone elsewhere
        nodes = placement(open_session(out / LAYOUT.decoder, [provider]))
        found["decoder_nodes"] = dict(Counter(name for _, name in nodes))
    latency = measure_latency(
        onnx_vlm,
        OnnxVLM.from_pretrained(base, [provider]),
        requests,
        control=OnnxVLM.from_pretrained(base, [provider], verify=False),
        providers=[provider],
        rounds=rounds,
    )
    return {**found, "latency": latency.model_dump(mode="json")}


def main(given: Sequence[str] | None = None) -> int:
    """Run the matrix; returns the exit code."""
    parser = arguments(__doc__, quick=QUICK)
    parser.add_argument("model", nargs="?", default="reference:mild", help="checkpoint folder or reference:mild")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--data", default="reference", help="records to fit on and to take the timed batch from")
    parser.add_argument("--adapter", type=Path, action="append", help="adapter folder; repeat; instead of fitting")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40, help="of the latency measurement")
    parser.add_argument("--provider", default=PROVIDER, help="ONNX Runtime execution provider")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="all by default")
    parser.add_argument("--mode", choices=MODES, action="append", help="all by default")
    options = parser.parse_args(given)
    try:
        machine = require(options.provider)
        vlm = VLM.from_pretrained(model_path(options.model))
        given = {path.name: [Adapter.load(path)] for path in options.adapter or ()}
        adapters = given or fitted(vlm, options.data)
        pictured = [record for record in load_records(data_path(options.data), ["test"]) if record.pictured]
        requests = [request_of(record) for record in subset(pictured, options.batch)]
        matrix: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for precision in options.precision or PRECISIONS:
                base = Path(scratch) / precision
                export_base(vlm, base, precision, fused=attends_in_one_node(precision, (options.provider,)))
                for mode in options.mode or MODES:
                    for name, pair in adapters.items():
                        print(f"{precision}, {mode}, {name}", file=sys.stderr)
                        found = cell(
                            vlm, pair, Path(scratch), base, precision, mode, requests, options.provider, options.rounds
                        )
                        matrix.setdefault(name, {})[f"{precision}, {mode}"] = found
        write_atomic(options.out, canonical_json({"model": options.model, "machine": machine, "matrix": matrix}))
    except SafetykitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failed = [name for name, cells in matrix.items() if not all(one["passed"] for one in cells.values())]
    print(f"{options.out}: {', '.join(failed) or 'nothing'} failed", file=sys.stderr)
    return 5 if failed else 0


if __name__ == "__main__":
    run(main)
