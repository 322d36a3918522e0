"""HiddenDetect (Jiang et al., "HiddenDetect: Detecting Jailbreak Attacks against Large Vision-Language Models via
Monitoring Hidden States", arXiv:2502.14744): how much of a refusal the state holds already. A baseline without a fit.

    risk = cos(W_U norm(h_last), r) = r·W_U norm(h) / (‖W_U norm(h)‖ ‖r‖)

of one block's output, read through the final norm and the LM head W_U; r marks the refusal's first token.

In the graph nothing of the vocabulary's size is computed (ours). A final norm that scales every component by a gain g
and the state as a whole leaves the cosine to D h, D = diag(g), so that with the Gram matrix of the head, d × d::

    risk = uᵀh / √(hᵀ G h),   G = D W_Uᵀ W_U D,   u = D W_Uᵀ r / ‖r‖

Deviations: the paper adds the cosines of several layers, which it picks by a handful of prompts, and marks several
refusal tokens. Here it is one layer and one token: on the reference VLM the last layer alone had the highest AUROC on
calibration records. The threshold is set on calibration records. The risk is a cosine, not a log-odds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, DetectorInfo, describe_data, library_versions
from ..artifact.sites import Site
from ..budget import Budget, groups_of
from ..errors import UsageError
from ..protocols import Example, HeadSource, Refusal, Workbench
from ..statistics.budget import threshold_within
from ..statistics.detector import Features
from ..statistics.probe import auroc, threshold_at
from ..statistics.threads import one_thread
from .ops import RefusalCosine
from .settings import HiddenDetect

SIGN = "risk is a cosine with the refusal: the more positive, the nearer the model is to refusing"


def fit(
    settings: HiddenDetect,
    model: HeadSource,
    records: Iterable[Example],
    refusal: Refusal,
    *,
    corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    budget: Budget | None = None,
) -> Adapter:
    """See :meth:`HiddenDetect.fit`."""
    calibration = labelled(list(records))
    place = place_of(settings, model.base.n_layers)
    features = Features.read(model, calibration, [place])
    return _solved(settings, model, features, place, refusal, corrected_by, budget)


def fit_on(settings: HiddenDetect, bench: Workbench) -> Adapter:
    """Fit with what a workbench has; what is missing is refused before anything runs."""
    place_of(settings, bench.model.base.n_layers)
    labelled(bench.records)
    refusal = bench.refusal()
    bench.phase("reading states")
    source: HeadSource = bench.second_pass()  # type: ignore[assignment]
    return fit(settings, source, bench.records, refusal, corrected_by=bench.corrected_by, budget=bench.budget)


def require_records(settings: HiddenDetect, records: Sequence[Example], d_model: int) -> None:
    """Refuse records on which no threshold can be set; no model is needed."""
    labelled(records)


def used_records(settings: HiddenDetect, records: Sequence[Example]) -> list[Example]:
    """What a fit looks at: nothing is learnt from other splits."""
    return labelled(records)


def labelled(records: Sequence[Example]) -> list[Example]:
    """The calibration records.

    Raises:
        UsageError: there are none of a label.
    """
    calibration = [record for record in records if record.split == "calibration"]
    for label in ("harmful", "harmless"):
        if not any(record.label == label for record in calibration):
            raise UsageError(
                f"The calibration split holds no {label} record.",
                "The threshold is set on harmless records, and harmful ones show what it catches.",
            )
    return calibration


def place_of(settings: HiddenDetect, depth: int) -> Site:
    """The block that is read.

    Raises:
        UsageError: it does not exist.
    """
    site = Site.block(depth - 1 if settings.layer is None else settings.layer)
    site.require_within(depth)
    return site


@one_thread()
def tensors_of(head: Float[Tensor, "vocab d_model"], gain: Float[Tensor, " d_model"], token: int) -> dict[str, Tensor]:
    """u and G of a head, a final norm's gain and a refusal's first token."""
    read = head.double() * gain.double()
    return {"direction": read[token].float().contiguous(), "gram": (read.T @ read).float().contiguous()}


@one_thread()
def _solved(
    settings: HiddenDetect,
    model: HeadSource,
    features: Features,
    place: Site,
    refusal: Refusal,
    corrected_by: Sequence[Mapping[str, JsonValue]],
    budget: Budget | None,
) -> Adapter:
    tensors = tensors_of(model.head()[0], model.gain(), refusal.token)
    states = torch.from_numpy(features.rows(place).all()).float()
    risk = RefusalCosine()(states[:, None], **tensors).double().numpy()
    harmful = features.harmful
    promise = None
    if budget is None:
        threshold = threshold_at(risk, harmful, settings.false_positive_rate)
    else:
        by_id = {record.id: float(value) for record, value in zip(features.records, risk, strict=True)}
        groups = groups_of(features.records, budget.budget_by)
        threshold, promise = threshold_within(budget, groups, by_id)
    above = risk > threshold
    info = AdapterInfo(
        method="hidden-detect",
        variant="cosine",
        sign_convention=SIGN,
        hyperparameters={
            **(budget.recorded_with(settings) if budget is not None else settings.values()),
            "layer": place.layer,
            "corrected_by": [dict(item) for item in corrected_by],
        },
        seed=None,
        base=model.base,
        data=describe_data(features.records),
        versions=library_versions(),
    )
    measured: dict[str, JsonValue] = {
        "what": "detector",
        "auroc": auroc(risk, harmful),
        "recall": float(above[harmful].mean()),
        "false_positive_rate": float(above[~harmful].mean()),
        "scores": [float(risk.min()), float(np.nextafter(max(risk.max(), threshold), np.inf))],
    }
    return Adapter(
        info,
        (Intervention("RefusalCosine", place, "last", "prefill", tensors),),
        {"calibration": [measured], **({"budget": promise.table()} if promise is not None else {})},
        detector=DetectorInfo(threshold=threshold, refusal=refusal.text, refusal_token=refusal.token),
    )
