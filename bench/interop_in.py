"""Base graphs made elsewhere: does the safety effect go into them, and does it stay?

    python bench/interop_in.py -o OUT [--optimum PYTHON] [--records 200] [--only NAME ...]

On ``reference:mild``, with VLM-Guard at its defaults and SASA: the text tower is built by ONNX Runtime GenAI's builder
in fp32, fp16 and int4 and, with ``--optimum``, exported by optimum; each decoder gets the adapters by
``safetykit export --base-onnx``, and our own export is quantised to int4. Measured under ONNX Runtime on test records:
attack success, over-refusal and exact answers before and after, parity, drift, decisions that differ from PyTorch, and
seconds. ``--optimum`` names a Python that has optimum-onnx and its version of transformers; with it the adapted decoder
also goes through ``ORTModelForCausalLM`` and its answers to text prompts are compared with ours, token by token.

Writes OUT/interop_in.json and OUT/interop_in.md; what is in the JSON already is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.output import atomic_folder
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench.skeleton import arguments, one_thread, percent, read_results, run, say, write_results
from safetykit.export.base.own import write_base
from safetykit.export.foreign.importing import import_graphs
from safetykit.export.foreign.optimum import write_optimum
from safetykit.export.manifest import LAYOUT
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import decide, tabulate
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.vlm import VLM

BASES = {
    "genai-fp32": "fp32",
    "genai-fp16": "fp16",
    "genai-int4": "int4",
    "optimum-fp32": "fp32",
    "own-int4": "int4",
}
METRICS = ("attack_success", "over_refusal", "exact")
_EXPORT = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], sys.argv[2], task="text-generation-with-past")
"""


def save_tower(vlm: VLM, folder: Path) -> Path:
    """The decoder as a plain causal language model, which is what builders of decoders read."""
    model = LlamaForCausalLM(vlm.model.config.text_config)
    model.model, model.lm_head = vlm.model.model.language_model, vlm.model.lm_head
    model.save_pretrained(folder)
    vlm.inputs.tokenizer.save_pretrained(folder)
    return folder


def build(name: str, tower: Path, folder: Path, optimum: str | None) -> Path:
    """Have somebody else's tool make a decoder."""
    if (folder / "model.onnx").is_file():
        return folder
    if name.startswith("optimum"):
        command = [str(optimum), "-c", _EXPORT, str(tower), str(folder)]
    else:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tower), "-o", str(folder)]
        command += ["-p", BASES[name], "-e", "cpu", "-c", str(folder.parent / "cache")]
        command += ["--extra_options", "exclude_embeds=true"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def bare(vlm: VLM, name: str, source: Path | None, folder: Path) -> Path:
    """The base graphs without an adapter, as an export folder: checked and copied, or our own quantised."""
    if not (folder / LAYOUT.manifest).is_file():
        with atomic_folder(folder, overwrite=True) as work:
            if source is None:
                write_base(vlm, work, "int4", say)
            else:
                import_graphs(vlm, source, work, BASES[name], say)  # type: ignore[arg-type]
    return folder


def rates(decisions: Any) -> dict[str, Any]:
    """The figures over all records."""
    (row,) = [line for line in tabulate(decisions) if line.group == "all"]
    return {name: row.metrics[name].model_dump(mode="json") for name in METRICS}


def measure(vlm: VLM, adapter: Adapter, name: str, base: Path, out: Path, records: list[Record]) -> dict[str, Any]:
    """Export with records and say what came of it."""
    start = time.perf_counter()
    made = export_onnx(
        vlm, [adapter], out, precision=BASES[name], base_onnx=base, records=records, overwrite=True, progress=say
    )  # type: ignore[arg-type]
    report, foreign = made.parity, made.manifest.foreign
    return {
        "seconds": time.perf_counter() - start,
        "parity": {kind: report.worst(kind) for kind in ("logits", "adapter-off", "risk", "op", "drift")},
        "scale": max(check.scale for check in report.checks if check.kind == "logits"),
        "checks": len(report.checks),
        "flips": len({flip.id for flip in report.flips}),
        "weights": foreign.weights.model_dump(mode="json") if foreign else None,
        "rows_alone": bool(foreign and foreign.rows_alone),
        "after": rates(made.decisions[1]),
        "pytorch": rates(made.decisions[0]),
    }


def through_optimum(vlm: VLM, adapter: Adapter, folder: Path, python: str, records: list[Record]) -> dict[str, Any]:
    """Text prompts through ``ORTModelForCausalLM`` on the adapted decoder, and through PyTorch with hooks."""
    texts = [record for record in records if record.image is None][:40]
    ids = [vlm.inputs.prepare([request_of(record)]).input_ids[0].tolist() for record in texts]
    work = folder.with_name(f"{folder.name}-optimum")
    write_optimum(folder, work, overwrite=True)
    wanted = {"prompts": ids, "max_new_tokens": 32, "eos": vlm.inputs.eos_token_ids[0], "pad": vlm.inputs.pad_token_id}
    prompts, answers = work.with_suffix(".prompts.json"), work.with_suffix(".answers.json")
    prompts.write_text(json.dumps(wanted))
    script = Path(__file__).with_name("optimum_loader.py")
    subprocess.run([python, str(script), str(work), str(prompts), str(answers)], check=True, stderr=subprocess.DEVNULL)
    with vlm.applied(adapter):
        ours = [vlm.generate([request_of(record)])[0] for record in texts]
    bare = [vlm.generate([request_of(record)])[0] for record in texts]
    ends = set(vlm.inputs.eos_token_ids)
    theirs = [[token for token in row if token not in ends] for row in json.loads(answers.read_text())]
    return {
        "prompts": len(texts),
        "equal_to_adapted": sum(list(one.token_ids) == other for one, other in zip(ours, theirs, strict=True)),
        "equal_to_unmodified": sum(list(one.token_ids) == other for one, other in zip(bare, theirs, strict=True)),
        "adapter_changes": sum(one.token_ids != other.token_ids for one, other in zip(ours, bare, strict=True)),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    head = "base | adapter | attack before | attack after | over-refusal | exact | flips | logits | drift | rows | s"
    lines = [f"| {head} |", "|---|---|" + "---:|" * 9]
    for key, found in sorted(results["exports"].items()):
        base, adapter = key.split("/")
        before = results["before"][base]
        after = found["after"]
        cells = [base, adapter, percent(before["attack_success"])]
        cells += [percent(after[name]) for name in METRICS]
        relative = found["parity"]["logits"] / found["scale"]
        drift = f"{found['parity']['drift'] / found['scale']:.2f}" if found["parity"]["drift"] else "–"
        rows = "one by one" if found["rows_alone"] else "batched"
        cells += [str(found["flips"]), f"{relative:.1e}", drift, rows, f"{found['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for key, found in sorted(results.get("optimum", {}).items()):
        lines += [
            "",
            f"`{key}` through `ORTModelForCausalLM`: {found['equal_to_adapted']} of {found['prompts']} answers are "
            f"token by token those of PyTorch with the adapter; the adapter changes {found['adapter_changes']}.",
        ]
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--optimum", help="a Python that has optimum-onnx")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--only", choices=BASES, action="append")
    parser.add_argument("--sasa", type=Path, help="a fitted SASA adapter, exported too")
    options = parser.parse_args(given)
    one_thread()
    path = options.out / "interop_in.json"
    results: dict[str, Any] = read_results(path, {"exports": {}, "before": {}})
    vlm = VLM.from_pretrained(model_path("reference:mild"))
    records = subset(load_records(data_path("reference"), ["test"]), options.records)
    guard = VLMGuard().fit(vlm, load_records(data_path("reference"), ["fit", "calibration"]))
    adapters = {"vlm-guard": guard} | ({"sasa": Adapter.load(options.sasa)} if options.sasa else {})
    tower = options.out / "tower"
    if not tower.is_dir():
        save_tower(vlm, tower)
    for name in options.only or BASES:
        if name.startswith("optimum") and not options.optimum:
            continue
        source = None if name.startswith("own") else build(name, tower, options.out / name, options.optimum)
        base = bare(vlm, name, source, options.out / f"{name}-bare")
        if name not in results["before"]:
            say(f"{name}, unmodified")
            results["before"][name] = rates(decide(OnnxVLM.from_pretrained(base), records))
        for method, adapter in adapters.items():
            key = f"{name}/{method}"
            if key not in results["exports"]:
                say(key)
                out = options.out / f"{name}-{method}"
                results["exports"][key] = measure(vlm, adapter, name, base, out, records)
                if name.startswith("optimum") and method == "vlm-guard":
                    found = through_optimum(vlm, adapter, out, options.optimum, records)
                    results.setdefault("optimum", {})[key] = found
                write_results(path, results)
    write_atomic(options.out / "interop_in.md", table(results).encode())
    print(table(results))


if __name__ == "__main__":
    run(main)
