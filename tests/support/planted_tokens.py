"""A planted model token by token: a few tokens of a harmful record vary in a subspace of their modality."""

from __future__ import annotations

import functools
import hashlib

import torch
from planted import PlantedExample

from safetykit.adapters.artifact.manifest import BaseInfo
from safetykit.adapters.statistics.tokens import TokenBatch, whole

VISUAL, TEXTUAL = 8, 10
TELLING = {"visual": (3,), "textual": (2, 7)}  # positions within the modality: an eighth, and a fifth


class PlantedTokens:
    """Rows are [padding or 8 visual tokens | 10 textual tokens]; ``truth[modality]`` is [d_model, 2]."""

    def __init__(self, d_model: int = 24, n_layers: int = 4, strength: float = 12.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=n_layers, d_model=d_model)
        axes = torch.linalg.qr(torch.randn(d_model, 4, generator=generator))[0]
        self.truth = {"visual": axes[:, :2], "textual": axes[:, 2:]}
        self.offset = {name: 5 * torch.randn(d_model, generator=generator) for name in self.truth}
        self.strength = strength
        self.passes: list[int] = []
        self.tokens = functools.lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, record: PlantedExample, layer: int, modality: str) -> torch.Tensor:
        seed = int(hashlib.sha256(f"{record.id}{layer}{modality}".encode()).hexdigest()[:8], 16)
        generator = torch.Generator().manual_seed(seed)
        count = VISUAL if modality == "visual" else TEXTUAL
        states = self.offset[modality] + torch.randn(count, self.base.d_model, generator=generator)
        if record.label == "harmful":
            push = self.strength * self.truth[modality] @ torch.randn(2, generator=generator)
            states[list(TELLING[modality])] += push
        return states

    def token_states(self, records, sites, keep=whole, *, with_response=False):
        self.passes.append(len(records))
        for start in range(0, len(records), 7):
            batch = records[start : start + 7]
            pictured = torch.tensor([record.carrier != "text" for record in batch])
            visual = torch.zeros(len(batch), VISUAL + TEXTUAL, dtype=torch.bool)
            visual[:, :VISUAL] = pictured[:, None]
            textual = torch.zeros_like(visual)
            textual[:, VISUAL:] = True
            states = {
                site: torch.stack(
                    [
                        torch.cat([self.tokens(record, site.layer, name) for name in ("visual", "textual")])
                        for record in batch
                    ]
                )
                for site in sites
            }
            padding = ~(visual | textual)
            states = {site: value.masked_fill(padding[..., None], 1e6) for site, value in states.items()}
            yield keep(TokenBatch(batch, states, visual, textual))


def token_records(n: int = 120, carriers: tuple[str, ...] = ("text", "image")) -> list[PlantedExample]:
    return [
        PlantedExample(f"{label}-{carrier}{index}", label, carrier=carrier)
        for index in range(n)
        for carrier in carriers
        for label in ("harmful", "harmless")
    ]
