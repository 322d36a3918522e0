"""What rounding a decoder to 4 bits costs: size, speed, the next token, and decisions; and what a fit on it gives back.

    python bench/int4.py MODEL --data RECORDS -o OUT [--settings bench/real/results]

Every way of rounding is measured on the calibration records alone, so that a default may be chosen by it: the decoder's
size; processor time of a prefill and of a decoding step, in random order every round; how often the graph's most likely
next token is PyTorch's, along PyTorch's answers to ``--read`` prompts, and the Kullback–Leibler divergence of its
distribution from PyTorch's, in nats; and how many decisions of the unmodified model flip.

Then, on test records, what adapters cost at ``--confirm`` of them: decisions of the int4 graphs against those of
PyTorch with the checkpoint's weights and the adapter fitted on these, once with this adapter and once with one that is
fitted on the graph's own weights (``fit --on``). Settings of a method are its defaults, or those that ``--settings
FOLDER`` records in FOLDER/METHOD.json.

What is finished is kept in OUT and not made again. Writes OUT/int4.json and OUT/int4.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
import torch

from safetykit.bench._int4.laboratory import FULL, VARIANTS, Laboratory, flipped
from safetykit.bench._int4.table import table
from safetykit.bench.decoders import Graph
from safetykit.bench.skeleton import (
    PAUSE,
    arguments,
    cleared,
    one_thread,
    read_results,
    run,
    say,
    write_results,
    write_table,
)
from safetykit.export.document.latency import interleave
from safetykit.export.manifest import LAYOUT
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.evaluation.evaluate import Decision, Rate

METHODS = ("sasa", "vlm-guard")
QUICK = {
    "variants": ["symmetric 32", "asymmetric 16"],
    "confirm": ["asymmetric 16"],
    "methods": ["vlm-guard"],
    "records": 8,
    "fit_records": 120,
    "max_new_tokens": 4,
    "rounds": 2,
}


def measure_variants(lab: Laboratory, found: dict[str, Any]) -> None:
    """Size and next tokens of each way of rounding."""
    for name in lab.options.variants:
        if name not in found["variants"]:
            folder = lab.base(name)
            say(f"reading with {name}")
            size = (folder / LAYOUT.data("decoder")).stat().st_size / 1e6
            found["variants"][name] = {"mb": size, **lab.agreement(folder)}
            write_results(lab.out / "int4.json", found)


def measure_flips(lab: Laboratory, found: dict[str, Any]) -> None:
    """Decisions of the unmodified model that each way of rounding flips."""
    for name in lab.options.variants:
        if "flips" not in found["variants"][name]:
            folder = lab.base(name)
            before = lab.answers(lambda: lab.vlm, "calibration-fp32", lab.calibration)
            after = lab.answers(
                lambda folder=folder: OnnxVLM.from_pretrained(folder, verify=False),
                f"calibration-{folder.name}",
                lab.calibration,
            )
            found["variants"][name]["flips"] = Rate.of(len(flipped(before, after)), len(after)).model_dump()
            write_results(lab.out / "int4.json", found)


def measure_speed(lab: Laboratory, found: dict[str, Any]) -> None:
    """Processor milliseconds of a prefill and of a decoding step, all ways and fp32 in turn."""
    options = lab.options
    folders = {FULL: lab.full, **{name: lab.base(name) for name in options.variants}}
    width = lab.vlm.base.d_model
    prompt = np.random.default_rng(0).standard_normal((1, options.tokens, width)).astype(np.float32)

    def timed(graph: Graph) -> tuple[float, float]:
        sleep(PAUSE)
        rows, cache, before = [], None, 0
        for embeds in (prompt, *[prompt[:, :1]] * options.decode_steps):
            start = process_time()
            cache = graph(embeds, before, cache)
            rows.append(process_time() - start)
            before += embeds.shape[1]
        return rows[0], float(np.median(rows[1:]))

    graphs = {name: Graph(folder / LAYOUT.decoder, 1) for name, folder in folders.items()}
    calls = {name: (lambda graph=graph: timed(graph)) for name, graph in graphs.items()}
    times = interleave(calls, options.rounds, 1, seed=0)
    found["ms"] = {name: (1000 * np.median(values, axis=0)).round(2).tolist() for name, values in times.items()}
    write_results(lab.out / "int4.json", found)


def confirm(lab: Laboratory, found: dict[str, Any]) -> None:
    """Flips of adapters at the chosen ways of rounding, on test records."""
    bare = lab.answers(lambda: lab.vlm, "test-fp32", lab.test)
    full: dict[str, list[Decision]] = {}
    for method in lab.options.methods:
        adapter = lab.adapter(method)
        with lab.vlm.applied(adapter):
            full[method] = lab.answers(lambda: lab.vlm, f"test-fp32-{method}", lab.test)
    for name in lab.options.confirm:
        folder = lab.base(name)
        after = lab.answers(
            lambda folder=folder: OnnxVLM.from_pretrained(folder, verify=False), f"test-{folder.name}", lab.test
        )
        unmodified = flipped(bare, after)
        rows: dict[str, Any] = {"unmodified": _counted(unmodified, set(), after)}
        for method in lab.options.methods:
            for words, on in (("the checkpoint", None), ("the graph", name)):
                adapter = lab.adapter(method, on)
                after = lab.answers(
                    lambda name=name, one=adapter: OnnxVLM.from_pretrained(lab.graphs(name, one), verify=False),
                    f"test-{folder.name}-{method}-{'on' if on else 'off'}",
                    lab.test,
                )
                rows[f"{method}, fitted on {words}"] = _counted(flipped(full[method], after), unmodified, after)
        found["confirmed"][name] = rows
        write_results(lab.out / "int4.json", found)
    cleared(lab.out / "adapted")


def _counted(flips: set[str], unmodified: set[str], decisions: Sequence[Decision]) -> dict[str, Any]:
    n = len(decisions)
    return {
        "all": Rate.of(len(flips), n).model_dump(),
        "adapter": Rate.of(len(flips - unmodified), n).model_dump(),
        "attacks": sum(one.outcome == "answered" and one.label == "harmful" for one in decisions),
        "refused": sum(one.outcome == "refused" and one.label == "harmless" for one in decisions),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, quick=QUICK)
    parser.add_argument("model", help="checkpoint folder, or reference:mild")
    parser.add_argument("--data", required=True, help="records of all splits")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--confirm", nargs="*", choices=VARIANTS, default=["symmetric 32"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--settings", type=Path, help="folder of METHOD.json with hyperparameters")
    parser.add_argument("--records", type=int, default=160, help="of each split, at most")
    parser.add_argument(
        "--read", type=int, default=40, help="calibration prompts along whose answers tokens are compared"
    )
    parser.add_argument("--fit-records", type=int, help="of each split that adapters are fitted on; all by default")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128, help="of the timed prefill")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--decode-steps", type=int, default=8)
    options = parser.parse_args(given)
    one_thread()
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    lab = Laboratory(options)
    found = read_results(options.out / "int4.json", {"variants": {}, "ms": {}, "confirmed": {}})
    found["options"] = {name: getattr(options, name) for name in ("max_new_tokens", "tokens", "rounds")}
    found |= {"called": Path(options.model).name, "calibration": len(lab.calibration), "test": len(lab.test)}
    found["full_mb"] = (lab.full / LAYOUT.data("decoder")).stat().st_size / 1e6
    measure_variants(lab, found)
    if options.variants:
        measure_speed(lab, found)
    confirm(lab, found)
    measure_flips(lab, found)
    write_table(options.out / "int4.md", table(found))


if __name__ == "__main__":
    run(main)
