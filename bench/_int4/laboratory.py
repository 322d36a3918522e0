"""One model, rounded in every way, with its records and adapters; everything is kept in the output folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.kept import Identity
from safetykit.adapters.artifact.manifest import describe_data
from safetykit.adapters.artifact.output import atomic_folder
from safetykit.adapters.method import load
from safetykit.adapters.registry import get_method
from safetykit.bench.skeleton import (
    cleared,
    say,
)
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.own import export_base, quantise_decoder
from safetykit.export.manifest import read_manifest
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
BATCH = 16
FULL = "fp32"


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

    def _identity(self, records: Sequence[Record]) -> Identity:
        """What answers depend on."""
        data, tokens = describe_data(records).sha256, self.options.max_new_tokens
        return {"model": self.vlm.fingerprint, "records": data, "--max-new-tokens": tokens}

    def answers(self, model: Callable[[], Generator], name: str, records: Sequence[Record]) -> list[Decision]:
        """What a model answers; kept batch by batch."""
        identity = self._identity(records)
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
