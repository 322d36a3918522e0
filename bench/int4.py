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

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.manifest import describe_data
from safetykit.adapters.artifact.output import atomic_folder
from safetykit.adapters.method import load
from safetykit.adapters.registry import get_method
from safetykit.bench.decoders import Graph
from safetykit.bench.skeleton import (
    PAUSE,
    arguments,
    cleared,
    one_thread,
    percent,
    read_results,
    run,
    say,
    write_results,
    write_table,
)
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.own import export_base, quantise_decoder
from safetykit.export.document.latency import interleave
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.parity.graph_base import GraphBase
from safetykit.export.parity.recording import torch_logits
from safetykit.export.parity.report import find_flips
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import Decision, Generator, Rate, decide
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import Workbench

VARIANTS = {
    "symmetric 32": Int4Options(),
    "symmetric 16": Int4Options(rounding="symmetric", block_size=16),
    "asymmetric 32": Int4Options(rounding="asymmetric", block_size=32),
    "asymmetric 16": Int4Options(rounding="asymmetric", block_size=16),
    "k-quant 32": Int4Options(rounding="k-quant", block_size=32),
    "k-quant 16": Int4Options(rounding="k-quant", block_size=16),
    "symmetric 32, 8-bit head": Int4Options(rounding="symmetric", block_size=32, head_8bit=True),
    "asymmetric 32, 8-bit head": Int4Options(rounding="asymmetric", block_size=32, head_8bit=True),
    "asymmetric 16, 8-bit head": Int4Options(rounding="asymmetric", block_size=16, head_8bit=True),
    "k-quant 32, 8-bit head": Int4Options(rounding="k-quant", block_size=32, head_8bit=True),
}
METHODS = ("sasa", "vlm-guard")
BATCH = 16
FULL = "fp32"
QUICK = {
    "variants": ["symmetric 32", "asymmetric 16"],
    "confirm": ["asymmetric 16"],
    "methods": ["vlm-guard"],
    "records": 8,
    "fit_records": 120,
    "max_new_tokens": 4,
    "rounds": 2,
}


class Laboratory:
    """One model with its records, and everything that is kept in the output folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.vlm = VLM.from_pretrained(model_path(options.model))
        records = load_records(data_path(options.data))
        chosen = {split: [record for record in records if record.split == split] for split in ("calibration", "test")}
        self.fitted = [record for record in records if record.split != "test"]
        if options.fit_records:
            self.fitted = [
                record
                for split in ("fit", "calibration")
                for record in subset([one for one in self.fitted if one.split == split], options.fit_records)
            ]
        self.calibration, self.test = (subset(some, options.records) for some in chosen.values())

    @cached_property
    def full(self) -> Path:
        """The unmodified graphs in fp32."""
        folder = self.out / FULL
        if not folder.is_dir():
            say("exporting the base")
            export_base(self.vlm, folder)
        return folder

    def base(self, name: str) -> Path:
        """The unmodified graphs with a rounded decoder."""
        folder = self.out / "bases" / name.replace(", ", "-").replace(" ", "-")
        if not folder.is_dir():
            say(f"rounding: {name}")
            with atomic_folder(folder) as made:
                manifest = read_manifest(self.full, verify=False)
                copy_base(self.full, made, manifest)
                quantise_decoder(made, manifest, VARIANTS[name])
        return folder

    def adapter(self, method: str, on: str | None = None) -> Adapter:
        """Fitted on the checkpoint, or on rounded weights."""
        folder = self.out / "adapters" / "-".join([method, *([self.base(on).name] if on else [])])
        if folder.is_dir():
            return Adapter.load(folder)
        say(f"fitting {method}" + (f" on {on}" if on else ""))
        with GraphBase.read(self.base(on)).held(self.vlm) if on else nullcontext():
            adapter = self._fitted(method)
        adapter.save(folder)
        return adapter

    def _fitted(self, name: str) -> Adapter:
        method, given = get_method(name), {}
        if self.options.settings:
            recorded = json.loads((self.options.settings / f"{name}.json").read_text())
            given = recorded["adapters"][0]["hyperparameters"]
        settings = (
            method.settings.recorded(given)
            if given
            else method.settle({}, self.vlm.base.n_layers, self.vlm.base.d_model)
        )
        made: Adapter = load(method.fit)(settings, Workbench(self.vlm, self.fitted))
        return made

    def graphs(self, name: str, adapter: Adapter) -> Path:
        """The rounded graphs with an adapter in them."""
        folder = cleared(self.out / "adapted")
        manifest = read_manifest(self.base(name), verify=False)
        with atomic_folder(folder) as work:
            copy_base(self.base(name), work, manifest)
            adapt(work, manifest, [adapter])
        return folder

    def answers(self, model: Callable[[], Generator], name: str, records: Sequence[Record]) -> list[Decision]:
        """What a model answers; kept batch by batch."""
        identity = [self.vlm.fingerprint, describe_data(records).sha256, self.options.max_new_tokens]
        journal = Journal(self.out / "answers" / f"{name}.jsonl", identity)
        say(f"answering: {name}")
        return decide(model(), records, max_new_tokens=self.options.max_new_tokens, batch_size=BATCH, journal=journal)

    @cached_property
    def expected(self) -> list[np.ndarray]:
        """PyTorch's logits [tokens, rows, vocabulary] along its greedy answers to calibration prompts, by batch."""
        say("reading with PyTorch")
        steps = self.options.max_new_tokens - 1
        return [
            np.stack([logits[:, -1] for logits in torch_logits(self.vlm, requests, steps)])
            for requests in self._batches()
        ]

    def agreement(self, folder: Path) -> dict[str, Any]:
        """How often a graph's next token is PyTorch's where both have read the same, and how far they are apart."""
        model, same, total, apart = OnnxVLM.from_pretrained(folder, verify=False), 0, 0, 0.0
        for requests, expected in zip(self._batches(), self.expected, strict=True):
            state = None
            for at, ours in enumerate(expected):
                state = (
                    model.prefill_requests(requests)
                    if state is None
                    else model.step(state, expected[at - 1].argmax(-1))
                )
                theirs = state.logits[:, -1]
                same, total = same + int((theirs.argmax(-1) == ours.argmax(-1)).sum()), total + len(ours)
                wanted, given = (torch.from_numpy(one).log_softmax(-1) for one in (ours, theirs))
                apart += float(torch.nn.functional.kl_div(given, wanted, reduction="sum", log_target=True))
        return {"same": Rate.of(same, total).model_dump(), "divergence": apart / total}

    def _batches(self) -> Iterator[list[Request]]:
        some = subset(self.calibration, self.options.read)
        for start in range(0, len(some), BATCH):
            yield [request_of(one) for one in some[start : start + BATCH]]


def flipped(before: Sequence[Decision], after: Sequence[Decision]) -> set[str]:
    """Ids of records whose decision differs."""
    return {flip.id for flip in find_flips(before, after)}


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


def share(rate: Mapping[str, Any]) -> str:
    """12 of 160 (4.3–12.6 %)."""
    return f"{rate['count']} of {rate['n']} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f} %)"


def table(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    said = found["options"]
    lines = [
        f"`{found['called']}`, {found['calibration']} calibration records, greedy answers of {said['max_new_tokens']} "
        f"tokens, one thread; a prefill of {said['tokens']} tokens and a decoding step after it, medians of "
        f"{said['rounds']} rounds of processor time. Wilson 95 % intervals.",
        "",
        "| rounding, weights a scale | decoder, MB | prefill, ms | decode, ms | same next token | divergence "
        "| decisions flipped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    if FULL in found["ms"]:
        prefill, decode = found["ms"][FULL]
        lines.append(f"| fp32 | {found['full_mb']:.0f} | {prefill:.1f} | {decode:.2f} | 100 % | 0 | 0 |")
    for name in VARIANTS:
        if (row := found["variants"].get(name)) is None:
            continue
        prefill, decode = found["ms"].get(name, (float("nan"), float("nan")))
        lines.append(
            f"| {name} | {row['mb']:.0f} | {prefill:.1f} | {decode:.2f} | {percent(row['same'])} "
            f"| {row['divergence']:.3f} | {share(row['flips']) if 'flips' in row else 'not measured'} |"
        )
    for name, rows in found["confirmed"].items():
        lines += [
            "",
            f"**{name}**, {found['test']} test records, against PyTorch with the checkpoint's weights and adapter:",
            "",
            "| | decisions flipped | … that the unmodified model does not flip |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {words} | {share(row['all'])} | {share(row['adapter'])} |"
            for words, row in sorted(rows.items(), key=lambda one: (one[0] != "unmodified", one[0]))
        ]
    return "\n".join(lines) + "\n"


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
