"""LEACE (Belrose et al., "LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819): the smallest change
of a state after which no linear probe does better than chance at telling a concept.

With states x of mean μ and covariance Σ, and Σ_xz their covariance with the concept z (section 4 of the paper)::

    h' = h − W⁺ P W (h − μ),   W = (Σ^½)⁺,   P the orthogonal projector on the columns of W Σ_xz

Concept: ``modality``  z = 1 with a picture, 0 without, over *harmless* records: that a picture is there is to change
                       nothing, so that what text is refused by meets pictures, too. No harmful picture is needed, and
                       nothing of harm is erased where labels are spread unevenly over carriers.
         ``harm``      z = 1 harmful, 0 harmless: the model shall not tell them apart, so it refuses *less*. A control,
                       as ablation of the refusal direction is, and no defence.

Variant: ``least-squares``  as above (LEACE)
         ``orthogonal``     W = I: the difference of the two means is projected out, whatever the states' covariance

z is one number, so the change has rank 1: h' = h − β L Rᵀ(h − μ), with R of length 1 and RᵀL = 1. It is computed by the
authors' package ``concept-erasure``, with its shrinkage of Σ. What is guaranteed holds for last positions of the fit
split, whose states these are.

Deviations: β = 1 is the paper's. The paper scrubs a model layer by layer, each fitted on what those before it left;
here each layer is fitted on the bare model, so after the first of several the guarantee is approximate. ``scope`` and
``phase`` say where the erasure acts: by default at every token of the prompt and at none of the answer, whose states
are not those that it was fitted on (ours; a sweep on the reference VLM ``mild`` shows a quarter of the exact answers
lost where it acts at both). Which concept to erase from a model that refuses is our choice: that harm in a picture is
missed because the picture moves states away from where refusals were learnt is what ShiftDC (arXiv:2502.13095) and
VLM-Guard measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Site, sites_of
from ..errors import UsageError
from ..protocols import Example, StateSource, Workbench
from ..statistics.threads import one_thread
from .settings import LEACE
from .statistics import ConceptStatistics, collect, used

SIGN = "what is erased has no sign: states of both sides of the concept move to where both are alike"


def fit(settings: LEACE, model: StateSource, records: Iterable[Example]) -> Adapter:
    """See :meth:`LEACE.fit`."""
    chosen = used(list(records), settings.concept)
    sites = sites_of(settings, model.base.n_layers)
    return solve(settings, model, collect(model, chosen, sites, settings.concept, settings.variant), chosen)


def fit_on(settings: LEACE, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    return fit(settings, bench.model, bench.records)


def require_records(settings: LEACE, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that lack one side of the concept; no model is needed."""
    used(records, settings.concept)


def solve(settings: LEACE, model: StateSource, statistics: ConceptStatistics, records: Sequence[Example]) -> Adapter:
    """See :meth:`LEACE.solve`."""
    sites = sites_of(settings, model.base.n_layers)
    interventions = []
    for site in sites:
        left, right, mean = erasure(statistics, site)
        tensors = {"left": left, "right": right, "mean": mean, "beta": torch.tensor(settings.beta)}
        stored = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
        interventions.append(Intervention("ConceptErasure", site, settings.scope, settings.phase, stored))
    info = AdapterInfo(
        method="leace",
        variant=settings.variant,
        sign_convention=SIGN,
        hyperparameters={**settings.values(), "layers": [site.layer for site in sites]},
        seed=None,
        base=model.base,
        data=describe_data(records),
        versions={**library_versions(), "concept-erasure": version("concept-erasure")},
    )
    return Adapter(info, tuple(interventions), {})


@one_thread(blas=False)
def erasure(
    statistics: ConceptStatistics, site: Site
) -> tuple[Float[Tensor, "d_model 1"], Float[Tensor, "d_model 1"], Float[Tensor, " d_model"]]:
    """L, R and μ at a site.

    Raises:
        UsageError: its states hold nothing of the concept.
    """
    fitter = statistics[site]
    left, right = fitter.eraser.proj_left, fitter.eraser.proj_right.T
    length = right.norm()
    if not length > 0:
        raise UsageError(
            f"States at {site} do not tell the two sides of the concept apart, so there is nothing to erase.",
            "Choose other layers.",
        )
    sign = -1.0 if right.flatten()[right.abs().argmax()] < 0 else 1.0  # an SVD has none
    return left * (sign * length), right * (sign / length), fitter.mean_x
