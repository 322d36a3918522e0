"""What CARE learns from: pooled states of chosen tokens, per site, modality and role, as streaming moments."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example
from ..statistics.choices import Contrast, Modality, TokenChoice
from ..statistics.moments import Moments
from ..statistics.tokens import KernelWitness, TokenBatch, TokenSource, pick, pool_best, sample

Role = Literal["malicious", "benign"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
ROLES: tuple[Role, ...] = get_args(Role)
_RECORDS, _TOKENS = 128, 512  # references of a witness: records per role with and without a picture, tokens per role


@dataclass(frozen=True)
class CareStatistics:
    """Moments of pooled states by site, modality and role."""

    moments: dict[tuple[Site, Modality, Role], Moments]

    def of(self, site: Site, modality: Modality) -> tuple[Moments, Moments]:
        """Benign and malicious moments.

        Raises:
            UsageError: no record of a role has tokens of this modality.
        """
        for role in ROLES:
            if not self.moments[site, modality, role].count:
                raise lacking(role, modality)
        return self.moments[site, modality, "benign"], self.moments[site, modality, "malicious"]


def lacking(role: Role, modality: Modality) -> UsageError:
    """The refusal of a modality without a record of a role."""
    what = "with a picture" if modality == "visual" else "of any carrier"
    other = "textual" if modality == "visual" else "visual"
    return UsageError(
        f"The fit split holds no {role} record {what}.",
        f"Add some, or correct one modality only with --modalities {other}.",
    )


def roles(
    records: Sequence[Example], contrast: Contrast, outcomes: Mapping[str, str] | None = None
) -> dict[Role, list[Example]]:
    """Which records of the fit split are benign and which malicious.

    ``label``: the harmless against the harmful ones. ``carrier``: the harmless ones against the harmful ones with
    a picture, which is how attacks arrive. ``behaviour`` (ours): those that the bare model treats safely, harmless
    or refused, against the harmful ones that it answers.

    Args:
        outcomes: by id of harmful records, ``answered``, ``refused`` or ``other``; for ``behaviour``.

    Raises:
        UsageError: a role has no record, or ``outcomes`` is missing.
    """
    fit = [record for record in records if record.split == "fit"]
    found: dict[Role, list[Example]] = {
        "malicious": [record for record in fit if record.label == "harmful"],
        "benign": [record for record in fit if record.label == "harmless"],
    }
    for role, label in (("malicious", "harmful"), ("benign", "harmless")):
        if not found[role]:  # type: ignore[index]
            raise UsageError(
                f"The fit split holds no {label} record.", "CARE is fitted on harmful and harmless records."
            )
    if contrast == "carrier":
        found["malicious"] = [record for record in found["malicious"] if record.carrier != "text"]
    elif contrast == "behaviour":
        if outcomes is None:
            raise UsageError(
                "A contrast of behaviour needs to know which harmful records the model answers.",
                "Pass outcomes, as safetykit.toolkit.workbench.Workbench gives them, or choose another contrast.",
            )
        found["benign"] += [record for record in found["malicious"] if outcomes.get(record.id) == "refused"]
        found["malicious"] = [record for record in found["malicious"] if outcomes.get(record.id) == "answered"]
    if not found["malicious"]:
        lacking = "with a picture" if contrast == "carrier" else "that the model answers"
        raise UsageError(f"The fit split holds no harmful record {lacking}.", "Choose --contrast label.")
    return found


def collect(
    model: TokenSource,
    records: Mapping[Role, Sequence[Example]],
    sites: Sequence[Site],
    tokens: TokenChoice | None = None,
) -> CareStatistics:
    """Stream the statistics of all ``sites`` over records by role.

    Memory does not grow with the number of records: O(d²) per site, modality and role, and up to 512
    reference tokens per site, modality and role for the kernel.
    """
    tokens = tokens or TokenChoice()
    witnesses = _witnesses(model, records, sites, tokens) if tokens.selection == "kernel" else {}
    malicious = {record.id for record in records["malicious"]}
    d = model.base.d_model
    moments = {key: Moments(d) for key in product(sites, MODALITIES, ROLES)}
    everything = [*records["malicious"], *records["benign"]]

    def pooled(batch: TokenBatch) -> dict[tuple[Site, Modality, Role], Tensor]:
        found = {}
        for site, modality in product(sites, MODALITIES):
            states, mask = batch.states[site], batch.mask(modality)
            witness = witnesses.get((site, modality))
            scores = witness.scores(states) if witness and mask.any() else None
            means = pool_best(states, mask, scores, tokens.share(modality))
            found.update({(site, modality, role): means[rows] for role, rows in _by_role(batch, modality, malicious)})
        return found

    for found in model.token_states(everything, sites, pooled, with_response=tokens.with_response):
        for key, states in found.items():
            moments[key].update(states)
    return CareStatistics(moments)


def _by_role(batch: TokenBatch, modality: Modality, malicious: set[str]) -> Iterator[tuple[Role, Tensor]]:
    """Rows that have tokens of this modality, per role."""
    some = batch.mask(modality).any(1)
    bad = torch.tensor([record.id in malicious for record in batch.records])
    yield "malicious", some & bad
    yield "benign", some & ~bad


def _witnesses(
    model: TokenSource, records: Mapping[Role, Sequence[Example]], sites: Sequence[Site], tokens: TokenChoice
) -> dict[tuple[Site, Modality], KernelWitness]:
    """A witness per site and modality that both roles have references for."""
    chosen = []
    for role, text in product(ROLES, (True, False)):
        chosen += sample([record for record in records[role] if (record.carrier == "text") == text], _RECORDS)
    malicious = {record.id for record in records["malicious"]}
    most = _TOKENS // (2 * _RECORDS)
    states: dict[tuple[Site, Modality, Role], list[Float[Tensor, "picked d_model"]]] = {
        key: [] for key in product(sites, MODALITIES, ROLES)
    }

    def picked(batch: TokenBatch) -> dict[tuple[Site, Modality, Role], Tensor]:
        ids = "\0".join(record.id for record in batch.records)  # the draws depend on the batch alone
        generator = torch.Generator().manual_seed(zlib.crc32(ids.encode()))
        found = {}
        for modality in MODALITIES:
            for role, rows in _by_role(batch, modality, malicious):
                start = generator.get_state()  # the same tokens at every site
                for site in sites:
                    generator.set_state(start)
                    found[site, modality, role] = pick(
                        batch.states[site][rows], batch.mask(modality)[rows], most, generator
                    )
        return found

    for found in model.token_states(chosen, sites, picked, with_response=tokens.with_response):
        for key, some in found.items():
            states[key].append(some)
    witnesses = {}
    for site, modality in product(sites, MODALITIES):
        bad, good = (torch.cat(states[site, modality, role]) for role in ROLES)
        if len(bad) and len(good):
            witnesses[site, modality] = KernelWitness.between(bad, good)
    return witnesses
