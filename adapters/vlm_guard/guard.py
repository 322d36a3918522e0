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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from ..artifact.adapter import Adapter, Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Gating, Site
from ..errors import UsageError
from ..protocols import Example, StateSource, Workbench
from ..statistics.moments import Moments, top_directions
from .settings import Direction, VLMGuard

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor

_READINGS: tuple[tuple[Direction, bool], ...] = (("svd", False), ("mean", False), ("svd", True), ("mean", True))
_SHRINKAGE = 0.5  # of Σ: there are about as many harmless fit records as dimensions
SIGN = "v1 points towards harm: the mean harmful minus harmless text difference has a positive product with it"


@dataclass
class GuardStatistics:
    """What one pass over text pairs and one over calibration records leave behind, per site.

    Attributes:
        differences: moments of h(q⁻) − h(q⁺), over pairs.
        harmful, harmless: moments of all text states of either label.
        pictured: moments of harmless fit records with a picture.
        scores: per reading of the gate's direction (direction, whitened) and site, h_last · w of harmless
            calibration records, one value per record (no activations).
    """

    differences: dict[Site, Moments]
    harmful: dict[Site, Moments]
    harmless: dict[Site, Moments]
    pictured: dict[Site, Moments]
    scores: dict[tuple[Direction, bool], dict[Site, list[float]]] = field(default_factory=dict)

    def directions(
        self, site: Site, rank: int, direction: Direction = "svd"
    ) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " d_model"]]:
        """V_m and the singular values of A at ``site``; rows of A as the module describes.

        Raises:
            UsageError: the fit records do not span ``rank`` directions.
        """
        harmful, harmless = self.harmful[site], self.harmless[site]
        towards = harmful.mean - harmless.mean
        if self.differences[site].count:
            rows = self.differences[site].second_moment()
        else:
            rows = harmful.second_moment(about=harmless.mean) + harmless.second_moment(about=harmful.mean)
        if direction == "svd":
            return top_directions(rows, rank, towards)
        first = towards / towards.norm()
        outside = torch.eye(len(first), dtype=first.dtype) - torch.outer(first, first)
        others, values = top_directions(outside @ rows @ outside, max(rank - 1, 1), towards)
        return torch.cat([first[:, None], others[:, : rank - 1]], dim=1), values

    def gate(self, site: Site, direction: Direction, whitened: bool) -> Float[Tensor, " d_model"]:
        """w, of length 1: v₁, or v₁ without the modality gap and divided by the spread of harmless states.

        Raises:
            UsageError: ``whitened``, but no harmless fit record has a picture.
        """
        first = self.directions(site, 1, direction)[0][:, 0]
        if not whitened:
            return first
        text, pictured = self.harmless[site], self.pictured[site]
        if not pictured.count:
            raise UsageError(
                "The whitened gate needs harmless records with pictures in the fit split, and there is none.",
                "Add some, or choose --gate calibrated.",
            )
        gap = pictured.mean - text.mean
        gap = gap / gap.norm()
        covariance = (text.scatter + pictured.scatter) / (text.count + pictured.count)
        eye = torch.eye(len(gap), dtype=gap.dtype)
        keep = eye - torch.outer(gap, gap)
        scale = covariance.trace() / len(gap)
        shrunk = (1 - _SHRINKAGE) * keep @ covariance @ keep + _SHRINKAGE * scale * eye
        gate: Tensor = keep @ torch.linalg.solve(shrunk, keep @ first)
        gate = gate / gate.norm()
        return gate

    def centre(self, site: Site) -> Float[Tensor, " d_model"]:
        """Halfway between the harmful and the harmless text mean."""
        return (self.harmful[site].mean + self.harmless[site].mean) / 2


def fit(
    guard: VLMGuard, model: StateSource, records: Iterable[Example], *, text_model: StateSource | None = None
) -> Adapter:
    """See :meth:`VLMGuard.fit`."""
    records = list(records)
    statistics = collect(model, records, sites_of(guard, model.base.n_layers), text_model=text_model)
    return solve(guard, model, statistics, records)


def fit_on(guard: VLMGuard, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    return fit(guard, bench.model, bench.records, text_model=bench.text_model())


def sites_of(guard: VLMGuard, depth: int) -> tuple[Site, ...]:
    """Where the adapter acts in a decoder of ``depth`` blocks.

    Raises:
        UsageError: a layer does not exist.
    """
    layers = guard.layers if guard.layers is not None else (depth // 2,)
    sites = tuple(Site(guard.site, layer) for layer in sorted(set(layers)))
    for site in sites:
        site.require_within(depth)
    return sites


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


def _opened(item: Intervention, statistics: GuardStatistics, guard: VLMGuard) -> dict[str, Any]:
    """How often a gate opens on harmless calibration records, whose share it is to keep small."""
    scores = torch.tensor(statistics.scores[guard.direction, guard.gate == "whitened"][item.site], dtype=torch.float64)
    scores -= statistics.centre(item.site) @ item.tensors["gate"].to(torch.float64)
    rate = (scores > item.tensors["threshold"]).double().mean().item()
    return {"what": f"gate at {item.site}", "false_positive_rate": rate, "recall": None}


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


def pair_up(records: Sequence[Example]) -> list[tuple[Example, Example]]:
    """(harmful, harmless) pairs among ``records``, by their ``pair`` key; others are left out."""
    harmless = {record.id: record for record in records if record.label == "harmless"}
    pairs = []
    for record in records:
        if record.label == "harmful" and record.pair in harmless:
            pairs.append((record, harmless.pop(record.pair)))
    return pairs


def collect(
    model: StateSource,
    records: Sequence[Example],
    sites: Sequence[Site],
    *,
    text_model: StateSource | None = None,
) -> GuardStatistics:
    """Stream the statistics of all ``sites``; memory does not grow with the number of records.

    Raises:
        UsageError: a needed split or label is empty, or ``text_model`` has another shape.
    """
    source = text_model or model
    if (source.base.n_layers, source.base.d_model) != (model.base.n_layers, model.base.d_model):
        raise UsageError(
            f"The text model has {source.base.n_layers} layers of width {source.base.d_model}, the VLM "
            f"{model.base.n_layers} of {model.base.d_model}.",
            "Use the language model the VLM was built from.",
        )
    texts = [record for record in records if record.split == "fit" and record.carrier == "text"]
    benign = [record for record in records if record.split == "calibration" and record.label == "harmless"]
    for label in ("harmful", "harmless"):
        if not any(record.label == label for record in texts):
            raise UsageError(
                f"The fit split holds no {label} text record.", "VLM-Guard is fitted on harmful and harmless text."
            )
    if not benign:
        raise UsageError(
            "The calibration split holds no harmless record.", "Add some: the gate's threshold is set on them."
        )
    pairs = pair_up(texts)
    # Pairs when every harmful prompt has one; otherwise all records, each against the other set's mean.
    paired = len(pairs) == sum(record.label == "harmful" for record in texts)
    width = model.base.d_model

    def fresh() -> dict[Site, Moments]:
        return {site: Moments(width) for site in sites}

    pictured = [
        (record,)
        for record in records
        if record.split == "fit" and record.carrier != "text" and record.label == "harmless"
    ]
    statistics = GuardStatistics(fresh(), fresh(), fresh(), fresh())
    matched = {record.id for pair in pairs for record in pair} if paired else set()
    alone = [(record,) for record in texts if record.id not in matched]
    for batch, states in source.states(pairs, list(sites)) if paired else ():
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for site in sites:  # units keep (harmful, harmless) together and in this order
            first, second = states[site][harmful].double(), states[site][~harmful].double()
            statistics.harmful[site].update(first)
            statistics.harmless[site].update(second)
            statistics.differences[site].update(first - second)
    for batch, states in source.states(alone, list(sites)) if alone else ():
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for site in sites:
            statistics.harmful[site].update(states[site][harmful])
            statistics.harmless[site].update(states[site][~harmful])
    for _, states in model.states(pictured, list(sites)) if pictured else ():
        for site in sites:
            statistics.pictured[site].update(states[site])
    readings = [reading for reading in _READINGS if pictured or not reading[1]]
    gates = {(reading, site): statistics.gate(site, *reading) for reading in readings for site in sites}
    statistics.scores = {reading: {site: [] for site in sites} for reading in readings}
    for _, states in model.states([(record,) for record in benign], list(sites)):
        for site in sites:
            for reading in readings:
                statistics.scores[reading][site] += (states[site].double() @ gates[reading, site]).tolist()
    return statistics
