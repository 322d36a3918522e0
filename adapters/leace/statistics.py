"""What LEACE is learnt from: last-position states with the side of the concept that each is on, by site.

The sums are those of the authors' package ``concept-erasure``: means, the covariance of states, and their covariance
with the concept, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from concept_erasure import LeaceFitter

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.threads import one_thread
from .choices import Concept, Variant

ConceptStatistics: TypeAlias = dict[Site, LeaceFitter]
_METHODS = {"least-squares": "leace", "orthogonal": "orth"}  # as the package calls them
_NOTHING = 1e-12  # a singular value below this is rounding


def on_side(record: Example, concept: Concept) -> bool:
    """Whether a record has what is erased: a picture, or harm."""
    return record.carrier != "text" if concept == "modality" else record.label == "harmful"


def used(records: Sequence[Example], concept: Concept) -> list[Example]:
    """The records of the fit split that a concept is learnt from: of modality, the harmless ones.

    Raises:
        UsageError: one side of the concept is missing.
    """
    found = [one for one in records if one.split == "fit" and (concept == "harm" or one.label == "harmless")]
    sides = {on_side(record, concept) for record in found}
    if len(sides) == 2:
        return found
    both = "harmless records with and without a picture" if concept == "modality" else "harmful and harmless records"
    raise UsageError(
        f"LEACE learns the concept {concept} from {both}, and the fit split lacks one of them.",
        "Add some, or choose another --concept.",
    )


def collect(
    model: StateSource, records: Sequence[Example], sites: Sequence[Site], concept: Concept, variant: Variant
) -> ConceptStatistics:
    """Stream the statistics of all ``sites``; memory does not grow with the number of records."""
    width = model.base.d_model
    # Erasing by this very covariance cannot raise its trace, which the package would otherwise guard against.
    found = {
        site: LeaceFitter(width, 1, _METHODS[variant], dtype=torch.float64, constrain_cov_trace=False, svd_tol=_NOTHING)
        for site in sites
    }
    for batch, states in model.states([(record,) for record in records], list(sites)):
        side = torch.tensor([[on_side(record, concept)] for record in batch], dtype=torch.float64)
        with one_thread(blas=False):
            for site in sites:
                found[site].update(states[site].to("cpu", torch.float64), side)
    return found
