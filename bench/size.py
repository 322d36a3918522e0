"""Export time and peak memory against model size.

``python bench/size.py -o FILE [--size LAYERSxWIDTH …] [--scratch DIR]``

For each size a LLaVA with random weights is made (``bench/random_model.py``). Every step then runs in a process of its
own, which reports its wall time and its peak resident memory, imports included:

- ``load``: reading the checkpoint, for comparison;
- ``base``: exporting the three graphs, weights as external data;
- ``surgery``: opening the finished graphs, baking an affine op at every MLP, saving; the weights file stays as it is;
- ``fold``: the same adapter put into the weights;
- ``run``: opening the baked export under ONNX Runtime and comparing its logits with PyTorch's, with the hooks on.

A size whose decoder has over 2 GB of weights crosses the limit of one protobuf file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.bench.skeleton import arguments, peak_mb, run

SIZES = ("8x512", "16x1024", "16x2048", "24x2048")
STEPS = ("load", "base", "surgery", "fold", "run")
RANK = 16


def main(given: Sequence[str] | None = None) -> int:
    """Measure every size, or one step when called with ``--step``; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, help="JSON to write")
    parser.add_argument("--size", action="append", help=f"layers x width; {', '.join(SIZES)} by default")
    parser.add_argument("--scratch", type=Path, help="where models and exports are made; needs thrice their size")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.step:
        print(json.dumps(_step(options.step, options.scratch)))
        return 0
    if options.out is None:
        parser.error("--out is needed")
    rows = []
    for size in options.size or SIZES:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            rows.append(_measure(size, Path(scratch)))
            print(json.dumps(rows[-1]), file=sys.stderr)
            write_atomic(options.out, canonical_json({"rank": RANK, "sizes": rows}))
    return 0


def _measure(size: str, scratch: Path) -> dict[str, Any]:
    layers, width = size.split("x")
    maker = Path(__file__).with_name("random_model.py")
    subprocess.run(
        [sys.executable, maker, scratch / "model", "--layers", layers, "--width", width],
        check=True,
        capture_output=True,
    )
    found: dict[str, Any] = {"layers": int(layers), "width": int(width)}
    for step in STEPS:
        done = subprocess.run(
            [sys.executable, __file__, "--step", step, "--scratch", str(scratch)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{size}, {step}: {done.stderr.strip()[-2000:]}")
        found[step] = json.loads(done.stdout.splitlines()[-1])
    found["decoder_bytes"] = (scratch / "base" / "decoder.onnx.data").stat().st_size
    found["graph_bytes"] = {
        kind: (scratch / kind / "decoder.onnx").stat().st_size for kind in ("base", "surgery", "fold")
    }
    return found


def _step(step: str, scratch: Path) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    steps: dict[str, Callable[[Path], dict[str, Any]]] = {
        "load": _load,
        "base": _base,
        "surgery": _surgery,
        "fold": _fold,
        "run": _run,
    }
    started = time.perf_counter()
    found = steps[step](scratch)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "peak_mb": int(peak_mb())} | found


def _load(scratch: Path) -> dict[str, Any]:
    """Read the checkpoint, and write the adapter that later steps put in."""
    from safetykit.adapters.artifact.store import save_adapter
    from safetykit.bench.fold import random_adapter
    from safetykit.toolkit.model.vlm import VLM

    save_adapter(random_adapter(VLM.from_pretrained(scratch / "model"), RANK), scratch / "adapter")
    return {}


def _base(scratch: Path) -> dict[str, Any]:
    from safetykit.export.base.own import export_base
    from safetykit.toolkit.model.vlm import VLM

    export_base(VLM.from_pretrained(scratch / "model"), scratch / "base")
    return {}


def _copied(scratch: Path, name: str) -> tuple[Path, Any, float]:
    from safetykit.export.manifest import read_manifest
    from safetykit.export.surgery.adapt import copy_base

    folder = scratch / name
    folder.mkdir()
    manifest = read_manifest(scratch / "base", verify=False)
    started = time.perf_counter()
    copy_base(scratch / "base", folder, manifest)
    return folder, manifest, round(time.perf_counter() - started, 2)


def _surgery(scratch: Path) -> dict[str, Any]:
    import onnx_ir as ir

    from safetykit.adapters.artifact.store import load_adapter
    from safetykit.export.manifest import LAYOUT
    from safetykit.export.surgery.adapt import place, save_adapted
    from safetykit.export.surgery.bake import bake

    adapter = load_adapter(scratch / "adapter")
    folder, _, copying = _copied(scratch, "surgery")
    started = time.perf_counter()
    save_adapted(bake(ir.load(folder / LAYOUT.decoder), "decoder", place([adapter])), folder, "decoder")
    return {"copying_seconds": copying, "surgery_seconds": round(time.perf_counter() - started, 2)}


def _fold(scratch: Path) -> dict[str, Any]:
    from safetykit.adapters.artifact.store import load_adapter
    from safetykit.bench.fold import write_folded
    from safetykit.toolkit.model.folding import fold
    from safetykit.toolkit.model.vlm import VLM

    vlm, adapter = VLM.from_pretrained(scratch / "model"), load_adapter(scratch / "adapter")
    folder, manifest, copying = _copied(scratch, "fold")
    started = time.perf_counter()
    write_folded(vlm, fold(vlm, adapter), scratch / "base", manifest, folder)
    return {"copying_seconds": copying, "surgery_seconds": round(time.perf_counter() - started, 2)}


def _run(scratch: Path) -> dict[str, Any]:
    from safetykit.adapters.artifact.store import load_adapter
    from safetykit.export.manifest import read_manifest
    from safetykit.export.parity.compare import compare_logits, parity_requests
    from safetykit.export.runtime.onnx_vlm import OnnxVLM
    from safetykit.export.runtime.sessions import CPU
    from safetykit.toolkit.model.vlm import VLM

    vlm, manifest = VLM.from_pretrained(scratch / "model"), read_manifest(scratch / "base", verify=False)
    found = {}
    for name in ("surgery", "fold"):
        started = time.perf_counter()
        session = OnnxVLM(scratch / name, manifest, vlm.inputs, CPU)
        opening = round(time.perf_counter() - started, 2)
        batch = next(iter(parity_requests().values()))
        with vlm.applied(load_adapter(scratch / "adapter")):
            gap = compare_logits(vlm, session, batch, 2).logits
        found[name] = {"opening_seconds": opening, "logit_error_of_largest": gap.error / gap.scale}
        del session
    return found


if __name__ == "__main__":
    run(main)
