"""SASA (ACM MM 2025, arXiv:2507.21637): a probe before generation, on fused semantics projected onto the safety layer.

Safety is perceived in early layers, meaning emerges in later, fused ones. So the state of the safety layer s is
replaced, token by token, by the fused layer's state f scaled to be its projection::

    H'_s,t = α_t H_f,t,   α_t = ⟨H_s,t, H_f,t⟩ / ‖H_f,t‖²

blocks s+1…L−1 continue from H', and a logistic regression on the logits of the last prompt position gives the risk.

Exact and cheap (ours): H_f does not depend on the second pass, so blocks 0…f run once and the pass forks there. A
probe w on logits folds into hidden space: wᵀ W_U norm(h) = (W_Uᵀ w)ᵀ norm(h), a d×1 product (:mod:`.probe`).

Variants: ``published``    as above
          ``unprojected``  the ablation s = f: α = 1, so the branch is the normal pass. All f give the same states;
                           the last block is taken, after which nothing runs twice

Layers: those of LLaVA-1.5-7B are 13 and 15 in the paper, of unknown index base, and say nothing about another model.
Those that are not given are chosen (ours): the pair with the lowest out-of-fold loss on the fit split. Pairs whose
loss lies within one standard error of it are decided by the loss on calibration records, whose requests are about other
things: a probe may know the things it was fitted on by heart. No carrier outside the two splits has a say.

Space: either way the probe is linear in the logits; the paper's penalty (``logits``) and ours (``hidden``) weigh its
directions differently. On both reference VLMs ``hidden`` had the lower loss and the higher AUROC on calibration
records, averaged over all pairs, and is the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from ..artifact.adapter import Adapter, Intervention
from ..artifact.manifest import AdapterInfo, BaseInfo, DetectorInfo, describe_data, library_versions
from ..artifact.sites import Site
from ..errors import UsageError
from ..ops.branch import Branch, BranchOp
from ..ops.op import Detector as DetectorOp
from ..ops.op import Hidden
from ..protocols import Example
from ..statistics.detector import BranchSource, Features, Place, Refusal
from ..statistics.detector_report import Detector, describe
from ..statistics.probe import Metric, Space

Variant = Literal["published", "unprojected"]
SIGN = "risk is the log-odds of harm: the more positive, the more harmful"
_LAYERS_TRIED = 8  # per model, evenly spaced; so at most 28 pairs


class FusedProjection(BranchOp):
    """H' = α H_f with α in float32: squares of outliers overflow float16."""

    name = "FusedProjection"
    params = ("weight", "bias")

    def start(self, safety: Hidden, fused: Hidden) -> Hidden:
        early, late = safety.float(), fused.float()
        square = (late * late).sum(-1, keepdim=True)
        alpha = (early * late).sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        return (alpha * late).to(fused.dtype)

    def risk(self, normed: Hidden, *, weight: Tensor, bias: Tensor) -> Float[Tensor, " batch"]:
        return normed[:, -1].float() @ weight + bias


class LinearProbe(DetectorOp):
    """A probe on the last position of one block's output; the hidden state stays as it is (ours, not SASA)."""

    name = "LinearProbe"
    params = ("weight", "bias")

    def forward(self, hidden: Hidden, *, weight: Tensor, bias: Tensor) -> Float[Tensor, " batch"]:
        return hidden[:, -1].float() @ weight + bias


@dataclass(frozen=True)
class ProbeFitter:
    """What SASA and the one-pass probe share.

    Attributes:
        false_positive_rate: share of harmless calibration records that may be refused.
        space: where the probe's penalty is measured; see :mod:`.probe`.
        fraction: share of the fit records used, drawn within carrier and label.
        seed: of that draw and of the cross-validation's folds.
    """

    false_positive_rate: float = 0.02
    space: Space = "hidden"
    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.false_positive_rate < 1:
            raise UsageError(f"False-positive rate {self.false_positive_rate} is not in [0, 1).", "Try 0.02.")
        if not 0 < self.fraction <= 1:
            raise UsageError(f"Fraction {self.fraction} of the fit records is not in (0, 1].", "Try 0.05 or 1.")

    def places(self, depth: int) -> list[Place]:
        """What the detector may read in a decoder of ``depth`` blocks; more than one are a choice.

        Raises:
            UsageError: a given layer does not exist.
        """
        raise NotImplementedError

    def fit(
        self,
        model: BranchSource,
        records: Iterable[Example],
        refusal: Refusal,
        *,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    ) -> Adapter:
        """Fit the probe on the ``fit`` split and set its threshold on the ``calibration`` split.

        Args:
            model: as it will run: with the correctors applied that the detector will be stacked with.
            refusal: what is answered instead.
            corrected_by: which correctors these are, for the manifest.

        Raises:
            UsageError: a split or a label is missing, or a layer does not exist.
        """
        records = [record for record in records if record.split in ("fit", "calibration")]
        require_labels(records)
        features = Features.read(model, records, self.wanted(model.base.n_layers))
        return self.solve(model.base, features, model.head()[0], refusal, corrected_by=corrected_by)

    def wanted(self, depth: int) -> list[Place]:
        """The places whose states :meth:`solve` needs: what may be read, and what it is compared with."""
        places = self.places(depth)
        blocks = {place[1] if isinstance(place, tuple) else place.layer for place in places}
        compared = [Site.block(layer) for layer in sorted(layer for layer in blocks if layer is not None)]
        return list(dict.fromkeys([*places, *compared, Site("final_norm")]))

    def solve(
        self,
        base: BaseInfo,
        features: Features,
        head: Float[Tensor, "vocab d_model"],
        refusal: Refusal,
        *,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    ) -> Adapter:
        """Turn states into an adapter (no model is run); they may hold more places than needed.

        Raises:
            UsageError: a split or a label is missing.
        """
        require_labels(features.records)
        fit, calibration = features.where(split="fit"), features.where(split="calibration")
        fit = fit.sample(self.fraction, self.seed)
        detector = Detector(Metric.of(self.space, head), self.false_positive_rate, self.seed)
        fitted, table = detector.choose(self.places(base.n_layers), fit, calibration)
        chosen = fitted.place
        info = AdapterInfo(
            method=self._method,
            variant=self._variant,
            sign_convention=SIGN,
            hyperparameters={
                **asdict(self),
                **self._layers(chosen),
                "regularisation": fitted.probe.strength,
                "corrected_by": [dict(item) for item in corrected_by],
            },
            seed=self.seed,
            base=base,
            data=describe_data([*fit.records, *calibration.records]),
            versions=library_versions(),
        )
        tensors = fitted.probe.tensors()
        branch, interventions = None, ()
        if isinstance(chosen, tuple):
            branch = Branch("FusedProjection", Site.block(chosen[0]), Site.block(chosen[1]), tensors)
        elif chosen.kind == "final_norm":
            last = Site.block(base.n_layers - 1)
            branch = Branch("FusedProjection", last, last, tensors)
        else:
            interventions = (Intervention("LinearProbe", chosen, "last", "prefill", tensors),)
        return Adapter(
            info,
            interventions,
            {"detector": describe(detector, fitted, table, fit, calibration)},
            branch,
            DetectorInfo(threshold=fitted.threshold, refusal=refusal.text, refusal_token=refusal.token),
        )

    @property
    def _method(self) -> str:
        raise NotImplementedError

    @property
    def _variant(self) -> str:
        raise NotImplementedError

    def _layers(self, chosen: Place) -> dict[str, JsonValue]:
        """The chosen layers, for the manifest."""
        raise NotImplementedError


@dataclass(frozen=True)
class SASA(ProbeFitter):
    """Fits SASA; see the module's docstring.

    Attributes:
        variant: ``published`` or ``unprojected``.
        safety_layer, fused_layer: s and f, from 0; None: chosen.
    """

    variant: Variant = "published"
    safety_layer: int | None = None
    fused_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "unprojected" and (self.safety_layer, self.fused_layer) != (None, None):
            raise UsageError(
                "The unprojected variant has no safety layer and no fused layer: nothing is replaced.",
                "Leave both out, or choose --variant published.",
            )
        if None not in (self.safety_layer, self.fused_layer) and self.safety_layer > self.fused_layer:
            raise UsageError(
                f"The safety layer {self.safety_layer} lies after the fused layer {self.fused_layer}.",
                "Meaning emerges later than safety is perceived: give a safety layer that is not after the fused one.",
            )

    def places(self, depth: int) -> list[Place]:
        for layer in (self.safety_layer, self.fused_layer):
            if layer is not None:
                Site.block(layer).require_within(depth)
        if self.variant == "unprojected":
            return [Site("final_norm")]
        if None not in (self.safety_layer, self.fused_layer):
            return [(self.safety_layer, self.fused_layer)]
        tried = layers_tried(depth)
        safety = tried if self.safety_layer is None else [self.safety_layer]
        fused = tried if self.fused_layer is None else [self.fused_layer]
        pairs: list[Place] = [(s, f) for s in safety for f in fused if s < f]
        if not pairs:
            given = self.safety_layer if self.safety_layer is not None else self.fused_layer
            raise UsageError(
                f"With {given} as the given layer, no other is left for the projection.",
                "Give both layers, or another one.",
            )
        return pairs

    @property
    def _method(self) -> str:
        return "sasa"

    @property
    def _variant(self) -> str:
        return self.variant

    def _layers(self, chosen: Place) -> dict[str, JsonValue]:
        return {"safety_layer": chosen[0], "fused_layer": chosen[1]} if isinstance(chosen, tuple) else {}


def layers_tried(depth: int) -> list[int]:
    """The layers that a choice is made among: all of a shallow decoder, evenly spaced ones of a deep one."""
    return sorted({round(layer) for layer in np.linspace(0, depth - 1, min(depth, _LAYERS_TRIED))})


def require_labels(records: Sequence[Example]) -> None:
    """Refuse records on which no detector can be fitted.

    Raises:
        UsageError: naming the split and the label that is missing.
    """
    for split, labels in (("fit", ("harmful", "harmless")), ("calibration", ("harmless", "harmful"))):
        for label in labels:
            if not any(record.split == split and record.label == label for record in records):
                use = (
                    "The probe is fitted on both labels."
                    if split == "fit"
                    else ("The threshold is set on harmless records, and harmful ones show what it catches.")
                )
                raise UsageError(f"The {split} split holds no {label} record.", use)
