"""A planted model: hidden states are drawn, not computed, so the truth is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from safetykit.adapters.artifact.manifest import BaseInfo


@dataclass(frozen=True)
class PlantedExample:
    id: str
    label: str
    carrier: str = "text"
    split: str = "fit"
    pair: str | None = None

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


class PlantedModel:
    """Harmful states lie at ``offset + strength·direction``, harmless ones at ``offset``; noise per pair is shared.

    The offset is orthogonal to the directions, so that the paper's gate, which is not centred, opens on some states.
    """

    def __init__(self, d_model: int = 32, n_layers: int = 4, strength: float = 3.0) -> None:
        generator = torch.Generator().manual_seed(7)
        self.base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=n_layers, d_model=d_model)
        self.directions = torch.nn.functional.normalize(torch.randn(n_layers, d_model, generator=generator), dim=1)
        offset, span = 5 * torch.randn(d_model, generator=generator), torch.linalg.qr(self.directions.T).Q
        self.offset = offset - span @ (span.T @ offset)
        self.strength = strength

    def state(self, record: PlantedExample, layer: int) -> torch.Tensor:
        topic = record.pair if record.label == "harmful" and record.pair else record.id
        shared = torch.Generator().manual_seed(int(hashlib.sha256(topic.encode()).hexdigest()[:8], 16))
        own = torch.Generator().manual_seed(int(record.digest()[:8], 16))
        d = self.base.d_model
        state = self.offset + torch.randn(d, generator=shared) + 0.1 * torch.randn(d, generator=own)
        return state + (self.strength * self.directions[layer] if record.label == "harmful" else 0)

    def states(self, units, sites, pool="last"):
        for start in range(0, len(units), 4):
            batch = [record for unit in units[start : start + 4] for record in unit]
            yield batch, {site: torch.stack([self.state(record, site.layer) for record in batch]) for site in sites}


def planted_records(n: int = 60, paired: bool = True) -> list[PlantedExample]:
    records = []
    for index in range(n):
        records.append(PlantedExample(f"good{index}", "harmless"))
        records.append(PlantedExample(f"bad{index}", "harmful", pair=f"good{index}" if paired else None))
        records.append(PlantedExample(f"calm{index}", "harmless", carrier="image", split="calibration"))
    return records
