"""A model whose states are planted: what detectors are fitted on where the right answer is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from safetykit.adapters.artifact.manifest import BaseInfo
from safetykit.adapters.protocols import Blocks, Refusal
from safetykit.adapters.statistics.detector import Features

WIDTH, DEPTH, VOCABULARY = 16, 4, 50
REFUSAL = Refusal("no.", 7)
KINDS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Example:
    id: str
    label: str
    carrier: str
    category: str
    split: str
    pair: str | None = None

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def examples(n: int = 160) -> list[Example]:
    """Two carriers and four categories of either label, in both splits."""
    found = []
    for split in ("fit", "calibration"):
        for at in range(n):
            carrier, kind = ("text", "image")[at % 2], KINDS[at // 2 % 4]
            found.append(Example(f"{split}-bad{at}", "harmful", carrier, kind, split, f"{split}-good{at}"))
            found.append(Example(f"{split}-good{at}", "harmless", carrier, f"{kind}{kind}", split, f"{split}-bad{at}"))
    return found


class PlantedSource:
    """States of places are drawn: harm is a step along a known direction, larger at the pair (1, 2)."""

    base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=DEPTH, d_model=WIDTH)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.reads = 0

    def head(self):
        return self.weight, None

    def state(self, record: Example, place) -> torch.Tensor:
        if isinstance(place, Blocks):
            return torch.cat([self.state(record, site) for site in place.sites])
        digest = hashlib.sha256(f"{record.id}{place}".encode()).hexdigest()
        noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(int(digest[:8], 16)))
        strength = {(1, 2): 4.0}.get(place, 2.0)
        return 5 + noise + (strength * self.direction if record.label == "harmful" else 0)

    def deal(self, items, compute):
        return ((item, compute(item)) for item in items)

    def branch_states(self, records, places):
        self.reads += 1
        for start in range(0, len(records), 32):
            batch = list(records[start : start + 32])
            yield batch, {place: torch.stack([self.state(record, place) for record in batch]) for place in places}


def features(source, place=(1, 2), n: int = 160) -> Features:
    return Features.read(source, [record for record in examples(n) if record.split == "fit"], [place])
