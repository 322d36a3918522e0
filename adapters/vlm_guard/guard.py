"""VLM-Guard (Liu et al., "VLM-Guard: Safeguarding Vision-Language Models via Fulfilling Safety
Alignment Gap", arXiv:2502.10486).

The image/text modality gap blurs the harmful/harmless distinction that the aligned language model
has. So the safety direction is taken from the language model and applied to the whole VLM.

Fit (per layer l, text-only prompts through the decoder, harmful q⁻ and harmless q⁺ in pairs)::

    rows of A^l = h^l_last(q⁻_i) − h^l_last(q⁺_i),   A = U S Vᵀ,   V_m = first m columns of V

Sign (ours; an SVD has none): mean(A v₁) > 0, so v₁ points towards harm.

Direction: ``svd``  V_m as above, to the letter
           ``mean`` v₁ = the difference of the means of *all* harmful and harmless text states, normalised; v₂… as
                    in the SVD of what A has outside v₁ (ours). Harmless prompts without a harmful counterpart,
                    such as harmless questions about restricted things, count here and have no place in A.

Gate: ``paper``      g = 1[h_last · v₁ > 0]
      ``calibrated`` g = 1[(h_last − μ) · v₁ > τ], μ halfway between the two text means and τ at a chosen
                     false-positive rate on harmless calibration records of all carriers seen (ours)
      ``whitened``   g = 1[(h_last − μ) · w > τ], w ∝ Q(½QΣQ + ½·(tr Σ/d)·I)⁻¹Q v₁, Q = I − uuᵀ (ours): u is the
                     modality gap, the difference of the harmless means with and without a picture, and Σ
                     the covariance of harmless fit records around their modality's mean. One threshold then
                     serves both modalities. No safety label on any harmful picture is used.

Intervention, with P = V_m V_mᵀ, one family: h* = h + P(α·g·x − β·(h − μ))

    ``orthogonal``  α = 0, β = 1: moved to the subspace orthogonal to the direction (the abstract's words)
    ``steer``       β = 0, x = h: one pass, pushes further along the direction
    ``supervised``  x = the text-only state of the same query, β = g: within the subspace the state is
                    replaced by what the language model would hold (a second branch at prefill)
    ``target``      x = mean text-only state of harmful prompts, β = g (ours): the same supervision as
                    a constant, which needs no second branch

Deviations: without pairs, each row is the difference to the other set's mean (ours). The paper leaves
m, α and the layers open; ``toolkit.sweep`` chooses them on calibration records. The defaults are what it
chose on the reference VLM ``mild``: of all readings, the paper's own steering won there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..artifact.adapter import Adapter
from ..artifact.deciding import gate_at, require_deciding
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Gating, Site, sites_of
from ..errors import UsageError
from ..protocols import Example, StateSource, Workbench
from ..settings import spell
from ..statistics.threads import one_thread
from .settings import VLMGuard
from .statistics import (
    GuardStatistics,
    all_paired,
    collect,
    pair_up,
    pictured_of,
    require_labels,
    texts_of,
    unpictured,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

_SPREADS = 3  # standard deviations within which a text's score is taken to lie
SIGN = "v1 points towards harm: the mean harmful minus harmless text difference has a positive product with it"


def fit(
    guard: VLMGuard, model: StateSource, records: Iterable[Example], *, text_model: StateSource | None = None
) -> Adapter:
    """See :meth:`VLMGuard.fit`."""
    records = list(records)
    statistics = collect(model, records, sites_of(guard, model.base.n_layers), text_model=text_model)
    adapter = solve(guard, model, statistics, records)
    require_deciding(adapter)
    return adapter


def fit_on(guard: VLMGuard, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    return fit(guard, bench.model, bench.records, text_model=bench.text_model())


def require_records(guard: VLMGuard, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that cannot give what the settings ask for; no model is needed.

    Raises:
        UsageError: a label is missing, or pictures for a whitened gate, or there are too few records for the rank.
    """
    require_labels(records)
    if guard.gate == "whitened" and "gate" in guard.acting() and not pictured_of(records):
        raise unpictured()
    texts = texts_of(records)
    pairs = pair_up(texts)
    rows = len(pairs) if all_paired(texts, pairs) else len(texts)
    most = min(d_model, rows if guard.direction == "svd" else rows + 1)
    if guard.rank > most:
        raise UsageError(
            f"{spell(VLMGuard, 'rank')} cannot be {guard.rank}: the fit split gives {rows} differences of states of "
            f"width {d_model}.",
            f"Ask for {most} or less, or give more records.",
        )


def solve(guard: VLMGuard, model: StateSource, statistics: GuardStatistics, records: Sequence[Example]) -> Adapter:
    """See :meth:`VLMGuard.solve`."""
    sites = sites_of(guard, model.base.n_layers)
    interventions = tuple(_intervention(guard, site, statistics) for site in sites)
    spectra: dict[str, JsonValue] = {
        str(site.layer): statistics.directions(site, 1, guard.direction)[1].tolist() for site in sites
    }
    layers: list[JsonValue] = [site.layer for site in sites]
    info = AdapterInfo(
        method="vlm-guard",
        variant=guard.variant,
        sign_convention=SIGN,
        hyperparameters={**guard.values(), "layers": layers},
        seed=None,
        base=model.base,
        data=describe_data(_used(records)),
        versions=library_versions(),
    )
    attachments: dict[str, Any] = {"spectra": spectra}
    if guard.variant != "orthogonal":
        attachments["calibration"] = [_opened(item, statistics, guard) for item in interventions]
    return Adapter(info, interventions, attachments)


@one_thread(blas=False)
def _opened(item: Intervention, statistics: GuardStatistics, guard: VLMGuard) -> dict[str, Any]:
    """How often a gate opens on harmless calibration records, whose share it is to keep small, and between which scores
    records lie: these, and harmful text, of which the fit keeps moments."""
    gate = item.tensors["gate"].to(torch.float64)
    scores = torch.tensor(statistics.scores[guard.direction, guard.gate == "whitened"][item.site], dtype=torch.float64)
    scores -= statistics.centre(item.site) @ gate
    rate = (scores > item.tensors["threshold"]).double().mean().item()
    harmful = statistics.harmful[item.site]
    middle = ((harmful.mean - statistics.centre(item.site)) @ gate).item()
    reach = _SPREADS * (gate @ harmful.covariance() @ gate).clamp(min=0).sqrt().item()
    low, high = min(scores.min().item(), middle - reach), max(scores.max().item(), middle + reach)
    return {"what": gate_at(item.site), "false_positive_rate": rate, "recall": None, "scores": [low, high]}


@one_thread(blas=False)
def _intervention(guard: VLMGuard, site: Site, statistics: GuardStatistics) -> Intervention:
    basis, _ = statistics.directions(site, guard.rank, guard.direction)
    mean = statistics.centre(site)
    whitened = guard.gate == "whitened"
    gate = statistics.gate(site, guard.direction, whitened)
    target = statistics.harmful[site].mean - mean
    if guard.gate == "paper":
        threshold = -(mean @ gate)  # (h − μ)·v₁ > −μ·v₁ is the paper's h·v₁ > 0
    else:
        scores = torch.tensor(statistics.scores[guard.direction, whitened][site], dtype=torch.float64) - mean @ gate
        threshold = torch.quantile(scores, 1 - guard.false_positive_rate)
    tensors = {"basis": basis, "mean": mean}
    if guard.variant == "orthogonal":
        op, more = "SubspaceProjection", {"beta": torch.tensor(1.0)}
    else:
        op = {"steer": "GatedSteering", "supervised": "SupervisedSteering", "target": "TargetSteering"}[guard.variant]
        more = {"gate": gate, "threshold": threshold, "alpha": torch.tensor(guard.alpha)}
        if guard.variant == "target":
            more["target"] = target
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in {**tensors, **more}.items()}
    gating: Gating = "held" if guard.hold else "per-token"
    return Intervention(op, site, guard.scope, guard.phase, tensors, gating)


def _used(records: Sequence[Example]) -> list[Example]:
    """The records a fit looks at: text and harmless ones of the fit split, harmless ones of the calibration split."""
    return [
        record
        for record in records
        if (record.split == "fit" and (record.carrier == "text" or record.label == "harmless"))
        or (record.split == "calibration" and record.label == "harmless")
    ]
