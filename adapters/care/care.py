"""CARE (Fu et al., "Diagnosing and Repairing Unsafe Channels in Vision-Language Models via Causal Discovery and
Dual-Modal Safety Subspace Projection", arXiv:2603.27240): the second and third of its stages. The first, the causal
diagnosis that names the layers, is ``safetykit diagnose``.

Statistics: per layer and modality m (visual: image tokens of records with a picture; textual: the other tokens), the
states of chosen tokens (``tokens.py``) are pooled per record; Σ_b, Σ_m are their covariances over benign and malicious
records and μ_b the benign mean. What makes a record malicious: its ``label``, its ``carrier`` too, or the model's
``behaviour`` (``care_statistics.roles``).

Subspaces: the top-k generalised eigenvectors of Σ_m u = λ Σ_b u (``subspaces.py`` has both variants)::

    Δ_m = −α U_m U_mᵀ(h − μ_b,m)

Fusion: ``adaptive``   h + w_v Δ_v + w_t Δ_t, w_m = ‖Δ_m‖/(‖Δ_v‖ + ‖Δ_t‖) per token (the paper's hybrid fusion)
        ``sequential`` the visual correction, then the textual one of its result (affine)
        ``parallel``   h + Δ_v + Δ_t (affine)
        ``masked``     each modality's correction on its own tokens (ours)
        ``injection``  P_safe h + β(1 − P_safe)μ_b with P_safe = I − UUᵀ, the visual subspace's, then the textual one's

Every token, prefill and decode alike. ``official``: statistics from block outputs, applied at MLP outputs.
``corrected`` (ours): fitted and applied at one site.

Where the sources are silent, and we chose: Σ are covariances, not second moments about the origin, because Δ is about
μ_b too; Σ_m is about the malicious mean (``centre="own"``), or about μ_b by option. The kernel that ranks tokens. For
``injection``, that both subspaces act, one after the other. With one modality only, every fusion but ``injection`` is
the plain h + Δ_m.

What was measured on the reference VLM: where all harmful records count as malicious, the first directions hold the
model's own sign of harm, and removing them makes it refuse less. Hence the contrasts ``carrier`` and ``behaviour``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Scope, Site
from ..errors import UsageError
from ..protocols import Example, Workbench
from ..settings import spell
from ..statistics.choices import Modality
from ..statistics.subspaces import Subspace, principal_cosines, require_rank, require_spread, safety_subspace
from ..statistics.tokens import TokenSource
from .settings import CARE
from .statistics import MODALITIES, CareStatistics, collect, lacking, roles

SIGN = "the largest component of every basis vector is positive; a projection does not depend on it"
_SPECTRUM = 64  # eigenvalues kept in the attachment, per layer and modality


def fit(
    care: CARE, model: TokenSource, records: Iterable[Example], *, outcomes: Mapping[str, str] | None = None
) -> Adapter:
    """See :meth:`CARE.fit`."""
    by_role = roles(list(records), care.contrast, outcomes)
    sites = sorted({care.source(layer) for layer in layers_of(care, model.base.n_layers)})
    used = [record for group in by_role.values() for record in group]
    _require_responses(care, used)
    return solve(care, model, collect(model, by_role, sites, care.tokens), used)


def require_records(care: CARE, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that cannot give what the settings ask for; no model is needed.

    Which attacks succeed, the model alone can say, so a contrast of behaviour counts every harmful record.

    Raises:
        UsageError: a role has fewer than two records, of a modality that is corrected, or no response is there to
            pool, or ``d_model`` dimensions do not hold k directions.
    """
    require_rank(care.rank, d_model)
    by_role = roles(records, "label" if care.contrast == "behaviour" else care.contrast)
    _require_responses(care, [record for group in by_role.values() for record in group])
    for role, group in by_role.items():
        for modality in MODALITIES if care.modalities == "both" else (care.modalities,):
            count = sum(modality == "textual" or record.carrier != "text" for record in group)
            if not count:
                raise lacking(role, modality)
            require_spread(role, count)


def _require_responses(care: CARE, records: Sequence[Example]) -> None:
    if care.with_response and not any(record.response for record in records):
        raise UsageError(
            f"{spell(type(care), 'with_response')} does nothing: no record of the fit split has a response.",
            "Leave it out, or give the records responses.",
        )


def fit_on(care: CARE, bench: Workbench) -> Adapter:
    """Fit with what a workbench has; a contrast of behaviour asks the model first which attacks succeed."""
    outcomes = bench.outcomes() if care.contrast == "behaviour" else None
    bench.phase("fitting")
    return fit(care, bench.model, bench.records, outcomes=outcomes)


def solve(care: CARE, model: TokenSource, statistics: CareStatistics, records: Sequence[Example]) -> Adapter:
    """Turn the statistics of ``records`` into an adapter (no model is run).

    The attachment ``care`` holds ``{"layers": {str(layer): entry}}`` with an entry per layer::

        {"site": str, "statistics_site": str, "overlap": [cosines of the principal angles between the two
         subspaces, largest first; absent with one modality],
         "visual"/"textual": {"eigenvalues": [λ, largest first, at most 64 or k], "rank": k kept, "benign":
          number of records, "malicious": number, "shrinkage": ρ, "gain": [smallest, largest eigenvalue of
          I − αUUᵀ in the span of U; a projection has 0, twice]; absent if the modality does not act}}
    """
    interventions: list[Intervention] = []
    found: dict[str, Any] = {}
    for layer, modalities in layers_of(care, model.base.n_layers).items():
        subspaces = {modality: _subspace(care, statistics, layer, modality) for modality in modalities}
        interventions += _interventions(care, Site(care.site, layer), subspaces)
        found[str(layer)] = _describe(care, layer, subspaces)
    info = AdapterInfo(
        method="care",
        variant=care.variant,
        sign_convention=SIGN,
        hyperparameters=_hyperparameters(care, model),
        seed=None,
        base=model.base,
        data=describe_data(records),
        versions=library_versions(),
    )
    return Adapter(info, tuple(interventions), {"care": {"layers": found}})


def layers_of(care: CARE, depth: int) -> dict[int, tuple[Modality, ...]]:
    """Layers in order, each with the modalities that act there."""
    visual = care.layers if care.layers is not None else (depth // 2,)
    wanted = {"visual": visual, "textual": visual if care.textual_layers is None else care.textual_layers}
    acting = {name: set(wanted[name]) for name in MODALITIES if care.modalities in ("both", name)}
    layers = sorted(set().union(*acting.values()))
    for layer in layers:
        Site(care.site, layer).require_within(depth)
    return {layer: tuple(name for name in acting if layer in acting[name]) for layer in layers}


def _hyperparameters(care: CARE, model: TokenSource) -> dict[str, Any]:
    layers = [model.base.n_layers // 2] if care.layers is None else list(care.layers)
    return {**care.values(), "layers": layers}


def _subspace(care: CARE, statistics: CareStatistics, layer: int, modality: Modality) -> Subspace:
    benign, malicious = statistics.of(care.source(layer), modality)
    return safety_subspace(
        benign,
        malicious,
        care.rank,
        variant=care.variant,
        centre=care.centre,
        rule=care.shrinkage,
        floor=care.floor,
    )


def _interventions(care: CARE, site: Site, subspaces: dict[Modality, Subspace]) -> Iterator[Intervention]:
    if care.fusion in ("adaptive", "parallel") and len(subspaces) > 1:
        tensors = {
            name: value
            for modality, subspace in subspaces.items()
            for name, value in ((f"{modality}_basis", subspace.basis), (f"{modality}_mean", subspace.mean))
        }
        op = "AdaptiveProjection" if care.fusion == "adaptive" else "ParallelProjection"
        yield _intervention(care, op, site, care.scope, {**tensors, "alpha": torch.tensor(care.alpha)})
        return
    for modality, subspace in subspaces.items():
        scope: Scope = care.scope
        if care.fusion == "masked":
            scope = "vision" if modality == "visual" else "text"
        if care.fusion == "injection":
            tensors = {"basis": subspace.basis, "benign": subspace.mean, "beta": torch.tensor(care.beta)}
            yield _intervention(care, "BenignInjection", site, scope, tensors)
        else:
            tensors = {"basis": subspace.basis, "mean": subspace.mean, "beta": torch.tensor(care.alpha)}
            yield _intervention(care, "SubspaceProjection", site, scope, tensors)


def _intervention(care: CARE, op: str, site: Site, scope: Scope, tensors: dict[str, Tensor]) -> Intervention:
    stored = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    return Intervention(op, site, scope, care.phase, stored)


def _describe(care: CARE, layer: int, subspaces: dict[Modality, Subspace]) -> dict[str, Any]:
    strength = 1.0 if care.fusion == "injection" else care.alpha
    entry: dict[str, Any] = {"site": str(Site(care.site, layer)), "statistics_site": str(care.source(layer))}
    for modality, subspace in subspaces.items():
        entry[modality] = {
            "eigenvalues": subspace.eigenvalues[: max(_SPECTRUM, care.rank)].tolist(),
            "rank": subspace.basis.shape[1],
            "benign": subspace.benign,
            "malicious": subspace.malicious,
            "shrinkage": subspace.shrinkage,
            "gain": list(subspace.gain(strength)),
        }
    if len(subspaces) > 1:
        entry["overlap"] = principal_cosines(*(subspace.basis for subspace in subspaces.values()))
    return entry
