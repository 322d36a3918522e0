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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float

from ..artifact.adapter import Adapter, Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Gating, Phase, Scope, Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.moments import Moments, top_directions

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["orthogonal", "steer", "supervised", "target"]
Gate = Literal["paper", "calibrated", "whitened"]
Direction = Literal["svd", "mean"]
_READINGS: tuple[tuple[Direction, bool], ...] = (("svd", False), ("mean", False), ("svd", True), ("mean", True))
_SHRINKAGE = 0.5  # of Σ: there are about as many harmless fit records as dimensions
SIGN = "v1 points towards harm: the mean harmful minus harmless text difference has a positive product with it"


@dataclass
class GuardStatistics:
    """What one pass over text pairs and one over calibration records leave behind, per layer.

    Attributes:
        differences: moments of h(q⁻) − h(q⁺), over pairs.
        harmful, harmless: moments of all text states of either label.
        pictured: moments of harmless fit records with a picture.
        scores: per reading of the gate's direction (direction, whitened) and layer, h_last · w of harmless
            calibration records, one value per record (no activations).
    """

    differences: dict[int, Moments]
    harmful: dict[int, Moments]
    harmless: dict[int, Moments]
    pictured: dict[int, Moments]
    scores: dict[tuple[Direction, bool], dict[int, list[float]]] = field(default_factory=dict)

    def directions(
        self, layer: int, rank: int, direction: Direction = "svd"
    ) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " d_model"]]:
        """V_m and the singular values of A at ``layer``; rows of A as the module describes.

        Raises:
            UsageError: the fit records do not span ``rank`` directions.
        """
        harmful, harmless = self.harmful[layer], self.harmless[layer]
        towards = harmful.mean - harmless.mean
        if self.differences[layer].count:
            rows = self.differences[layer].second_moment()
        else:
            rows = harmful.second_moment(about=harmless.mean) + harmless.second_moment(about=harmful.mean)
        if direction == "svd":
            return top_directions(rows, rank, towards)
        first = towards / towards.norm()
        outside = torch.eye(len(first), dtype=first.dtype) - torch.outer(first, first)
        others, values = top_directions(outside @ rows @ outside, max(rank - 1, 1), towards)
        return torch.cat([first[:, None], others[:, : rank - 1]], dim=1), values

    def gate(self, layer: int, direction: Direction, whitened: bool) -> Float[Tensor, " d_model"]:
        """w, of length 1: v₁, or v₁ without the modality gap and divided by the spread of harmless states.

        Raises:
            UsageError: ``whitened``, but no harmless fit record has a picture.
        """
        first = self.directions(layer, 1, direction)[0][:, 0]
        if not whitened:
            return first
        text, pictured = self.harmless[layer], self.pictured[layer]
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
        gate = keep @ torch.linalg.solve(shrunk, keep @ first)
        return gate / gate.norm()

    def centre(self, layer: int) -> Float[Tensor, " d_model"]:
        """Halfway between the harmful and the harmless text mean."""
        return (self.harmful[layer].mean + self.harmless[layer].mean) / 2


@dataclass(frozen=True)
class VLMGuard:
    """Fits VLM-Guard; see the module's docstring for what the options mean.

    Attributes:
        variant: which member of the family.
        direction: ``svd`` or ``mean``.
        gate: ``paper``, ``calibrated`` or ``whitened`` (``orthogonal`` has no gate).
        layers: decoder blocks whose outputs are changed, from 0; None: the one in the middle.
        rank: m, the dimension of the subspace.
        alpha: α, the strength.
        false_positive_rate: share of harmless calibration records whose gate may open, per layer.
        scope, phase: which tokens, and when.
        hold: keep the prompt's decision while the answer is generated, instead of deciding per token; for phases
            that reach beyond prefill.
    """

    variant: Variant = "steer"
    direction: Direction = "svd"
    gate: Gate = "paper"
    layers: tuple[int, ...] | None = None
    rank: int = 2
    alpha: float = 2.0
    false_positive_rate: float = 0.02
    scope: Scope = "last"
    phase: Phase = "prefill"
    hold: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"Rank {self.rank} is not positive.", "VLM-Guard needs at least one direction.")
        if not 0 <= self.false_positive_rate < 1:
            raise UsageError(f"False-positive rate {self.false_positive_rate} is not in [0, 1).", "Try 0.02.")
        if self.variant == "supervised" and self.phase != "prefill":
            raise UsageError(
                "The supervised variant has its second branch at prefill only.", "Leave out --phase or use prefill."
            )
        if self.hold and (self.variant == "orthogonal" or self.phase == "prefill"):
            why = "has no gate" if self.variant == "orthogonal" else "acts at prefill only"
            raise UsageError(
                f"There is no decision to hold: the adapter {why}.", "Leave out --hold, or choose --phase both."
            )

    def fit(self, model: StateSource, records: Iterable[Example], *, text_model: StateSource | None = None) -> Adapter:
        """Fit on the ``fit`` split (text pairs) and calibrate on the ``calibration`` split.

        Args:
            model: the VLM that will run with the adapter.
            records: with splits; ``typographic`` and other visual carriers are never used for directions.
            text_model: a separate aligned language model of the same depth and width; by default the
                VLM's own decoder.

        Raises:
            UsageError: a split or a label is empty, or a layer does not exist.
        """
        records = list(records)
        statistics = collect(model, records, self._layers(model), text_model=text_model)
        return self.solve(model, statistics, records)

    def _layers(self, model: StateSource) -> tuple[int, ...]:
        depth = model.base.n_layers
        layers = self.layers if self.layers is not None else (depth // 2,)
        for layer in layers:
            Site.block(layer).require_within(depth)
        if not layers:
            raise UsageError("No layer was given.", "Name at least one, for example --layers 3-5.")
        return tuple(sorted(set(layers)))

    def solve(self, model: StateSource, statistics: GuardStatistics, records: Sequence[Example]) -> Adapter:
        """Turn collected statistics into an adapter (no model is run)."""
        layers = self._layers(model)
        interventions = tuple(self._intervention(layer, statistics) for layer in layers)
        spectra = {str(layer): statistics.directions(layer, 1, self.direction)[1].tolist() for layer in layers}
        info = AdapterInfo(
            method="vlm-guard",
            variant=self.variant,
            sign_convention=SIGN,
            hyperparameters={**asdict(self), "layers": list(layers)},
            seed=None,
            base=model.base,
            data=describe_data(_used(records)),
            versions=library_versions(),
        )
        return Adapter(info, interventions, {"spectra": spectra})

    def _intervention(self, layer: int, statistics: GuardStatistics) -> Intervention:
        basis, _ = statistics.directions(layer, self.rank, self.direction)
        mean = statistics.centre(layer)
        whitened = self.gate == "whitened"
        gate = statistics.gate(layer, self.direction, whitened)
        target = statistics.harmful[layer].mean - mean
        if self.gate == "paper":
            threshold = -(mean @ gate)  # (h − μ)·v₁ > −μ·v₁ is the paper's h·v₁ > 0
        else:
            scores = torch.tensor(statistics.scores[self.direction, whitened][layer], dtype=torch.float64) - mean @ gate
            threshold = torch.quantile(scores, 1 - self.false_positive_rate)
        tensors = {"basis": basis, "mean": mean}
        if self.variant == "orthogonal":
            op, more = "SubspaceProjection", {"beta": torch.tensor(1.0)}
        else:
            op = {"steer": "GatedSteering", "supervised": "SupervisedSteering", "target": "TargetSteering"}[
                self.variant
            ]
            more = {"gate": gate, "threshold": threshold, "alpha": torch.tensor(self.alpha)}
            if self.variant == "target":
                more["target"] = target
        tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in {**tensors, **more}.items()}
        gating: Gating = "held" if self.hold else "per-token"
        return Intervention(op, Site.block(layer), self.scope, self.phase, tensors, gating)


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
    layers: Sequence[int],
    *,
    text_model: StateSource | None = None,
) -> GuardStatistics:
    """Stream the statistics of all ``layers``; memory does not grow with the number of records.

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
    sites = {Site.block(layer): layer for layer in layers}
    width = model.base.d_model

    def fresh() -> dict[int, Moments]:
        return {layer: Moments(width) for layer in layers}

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
        for site, layer in sites.items():  # units keep (harmful, harmless) together and in this order
            first, second = states[site][harmful].double(), states[site][~harmful].double()
            statistics.harmful[layer].update(first)
            statistics.harmless[layer].update(second)
            statistics.differences[layer].update(first - second)
    for batch, states in source.states(alone, list(sites)) if alone else ():
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for site, layer in sites.items():
            statistics.harmful[layer].update(states[site][harmful])
            statistics.harmless[layer].update(states[site][~harmful])
    for _, states in model.states(pictured, list(sites)) if pictured else ():
        for site, layer in sites.items():
            statistics.pictured[layer].update(states[site])
    readings = [reading for reading in _READINGS if pictured or not reading[1]]
    gates = {(reading, layer): statistics.gate(layer, *reading) for reading in readings for layer in layers}
    statistics.scores = {reading: {layer: [] for layer in layers} for reading in readings}
    for _, states in model.states([(record,) for record in benign], list(sites)):
        for site, layer in sites.items():
            for reading in readings:
                statistics.scores[reading][layer] += (states[site].double() @ gates[reading, layer]).tolist()
    return statistics
