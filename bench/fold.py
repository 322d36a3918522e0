"""What folding costs at run time: ``python bench/fold.py MODEL BASE``, where BASE is a base export of MODEL.

A CARE-like adapter of affine interventions, one at every MLP, is folded into the decoder's weights. Printed as JSON:
nodes before and after (as saved, and as ONNX Runtime optimises them), how far the folded graph's logits are from
those of PyTorch with hooks, and the latency of folded over unmodified beside an A/A control. With ``--baked`` the
same adapter is also measured baked as ops. The subspaces are random: nothing here says how safe a model becomes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import AdapterInfo, canonical_json, describe_data, library_versions
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import SafetykitError
from safetykit.bench.skeleton import arguments, run
from safetykit.export.base.own import export_base
from safetykit.export.document.latency import measure_latency
from safetykit.export.manifest import GRAPHS, LAYOUT, ExportManifest, read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import adapt, copy_base, save_adapted
from safetykit.export.surgery.biases import merge_biases
from safetykit.export.surgery.layer_updates import plan_updates
from safetykit.export.surgery.updates import update_graph
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.folding import fold
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM


def random_adapter(vlm: VLM, rank: int, seed: int = 0) -> Adapter:
    """h − P(h − μ) at every MLP's output, P a random subspace."""
    generator = torch.Generator().manual_seed(seed)
    width, items = vlm.base.d_model, []
    for layer in range(vlm.base.n_layers):
        basis, _ = torch.linalg.qr(torch.randn(width, rank, generator=generator))
        mean = 0.1 * torch.randn(width, generator=generator)
        tensors = {"basis": basis.contiguous(), "mean": mean, "beta": torch.tensor(1.0)}
        items.append(Intervention("SubspaceProjection", Site("mlp", layer), "all", "both", tensors))
    info = AdapterInfo(
        method="random",
        variant="sequential",
        sign_convention="none",
        hyperparameters={"rank": rank},
        seed=seed,
        base=vlm.base,
        data=describe_data([]),
        versions=library_versions(),
    )
    return Adapter(info, tuple(items))


def write_folded(vlm: VLM, folded: Adapter, base: Path, manifest: ExportManifest, folder: Path) -> None:
    """The base's folder with updated graphs."""
    copy_base(base, folder, manifest)
    layers = plan_updates(vlm, folded.updates)
    for name in sorted({layer.graph for layer in layers}):
        model = merge_biases(update_graph(ir.load(folder / LAYOUT.graph(name)), name, layers))
        save_adapted(model, folder, name)


def count_nodes(folder: Path) -> dict[str, dict[str, int]]:
    """Nodes of each graph, as saved and as ONNX Runtime runs them on the CPU."""
    found = {}
    for name in GRAPHS:
        with tempfile.TemporaryDirectory() as scratch:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
            onnxruntime.InferenceSession(str(folder / LAYOUT.graph(name)), options, providers=list(CPU))
            optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
        saved = onnx.load(folder / LAYOUT.graph(name), load_external_data=False)
        found[name] = {"saved": len(saved.graph.node), "optimised": len(optimised.graph.node)}
    return found


def measure(
    vlm: VLM, adapter: Adapter, folder: Path, base: Path, requests: Sequence[Request], rounds: int
) -> dict[str, Any]:
    """Nodes, logits and latency of an adapted folder."""
    manifest = read_manifest(base)
    onnx_vlm, unmodified, control = (OnnxVLM(at, manifest, vlm.inputs, CPU) for at in (folder, base, base))
    with vlm.applied(adapter):
        gaps = [compare_logits(vlm, onnx_vlm, batch, 8).logits for batch in parity_requests().values()]
    latency = measure_latency(
        onnx_vlm, unmodified, requests, control=control, providers=CPU, rounds=rounds, decode_steps=16
    )
    return {
        "nodes": count_nodes(folder),
        "largest_logit_error": max(gap.error / gap.scale for gap in gaps),
        "latency": {name: getattr(latency, name).model_dump(mode="json") for name in ("prefill", "decode")},
    }


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("model", help="checkpoint folder or name")
    parser.add_argument("base", type=Path, help="base export of the model; made there when it does not exist")
    parser.add_argument("--data", default="reference", help="records to take the batch from")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of a base that is made")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--baked", action="store_true", help="also measure the same adapter baked as ops")
    options = parser.parse_args(given)
    try:
        vlm = VLM.from_pretrained(model_path(options.model))
        if not options.base.exists():
            export_base(vlm, options.base, options.precision)
        manifest = read_manifest(options.base)
        records = [record for record in load_records(data_path(options.data)) if record.image is not None]
        requests = [request_of(record) for record in subset(records, options.batch)]
        adapter = random_adapter(vlm, options.rank)
        found: dict[str, Any] = {"precision": manifest.precision, "unmodified": {"nodes": count_nodes(options.base)}}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "folded"
            folder.mkdir()
            write_folded(vlm, fold(vlm, adapter), options.base, manifest, folder)
            found["folded"] = measure(vlm, adapter, folder, options.base, requests, options.rounds)
            if options.baked:
                folder = Path(scratch) / "baked"
                folder.mkdir()
                copy_base(options.base, folder, manifest)
                adapt(folder, manifest, [adapter])
                found["baked"] = measure(vlm, adapter, folder, options.base, requests, options.rounds)
    except SafetykitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(canonical_json(found))
    return 0


if __name__ == "__main__":
    run(main)
