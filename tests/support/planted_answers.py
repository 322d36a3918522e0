"""A model whose answers are planted state by state: what the streaming guard is fitted on where the truth is known."""

from __future__ import annotations

import hashlib

import torch
from planted_source import DEPTH, WIDTH, Example

from safetykit.adapters.artifact.manifest import BaseInfo
from safetykit.adapters.protocols import Trajectories

CALLS, NAMED = 6, 2  # of an answer; the call that has read the thing's name
REFUSAL = "sorry, no."


class PlantedAnswers:
    """Harm is a step along ``harm``, at the prompt of a text (which is refused), and of a picture at the call ``NAMED``
    only. Inside a refusal the states lie along ``harm`` too, beside a direction of their own. Prompts of harmful text
    are moved along ``text``."""

    base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=DEPTH, d_model=WIDTH)

    def __init__(self) -> None:
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))[0]
        self.harm, self.refusing, self.text = basis[:, 0], basis[:, 1], basis[:, 2]

    def trajectories(self, records, sites, tokens):
        for start in range(0, len(records), 16):
            batch = list(records[start : start + 16])
            states = torch.stack([torch.cat([self.states(one, site) for site in sites], 1) for one in batch])
            texts = tuple(REFUSAL if self.refused(one) else "this is a thing." for one in batch)
            count = min(CALLS, tokens)
            yield batch, Trajectories(states[:, :count], torch.full((len(batch),), count), texts)

    def refused(self, record: Example) -> bool:
        return record.label == "harmful" and record.carrier == "text"

    def states(self, record: Example, site) -> torch.Tensor:
        seed = int(hashlib.sha256(f"{record.id}{site}".encode()).hexdigest()[:8], 16)
        found = 0.5 * torch.randn(CALLS, WIDTH, generator=torch.Generator().manual_seed(seed))
        if record.label == "harmless":
            return found
        if self.refused(record):
            found += 3 * self.harm
            found[1:] += 6 * self.refusing
            found[0] += 2 * self.text
        else:
            found[NAMED] += 3 * self.harm
            found[-1] += 9 * self.harm  # after the answer, where it helps no more
        return found
