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
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..artifact.adapter import Adapter, Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Phase, Scope, Site
from ..errors import UsageError
from ..protocols import Example
from ..statistics.moments import Shrinkage
from ..statistics.subspaces import Centre, Subspace, Variant, principal_cosines, safety_subspace
from ..statistics.tokens import Modality, Selection, TokenSource
from .statistics import MODALITIES, CareStatistics, Contrast, TokenChoice, collect, roles

Fusion = Literal["adaptive", "sequential", "parallel", "masked", "injection"]
Modalities = Literal["both", "visual", "textual"]
Where = Literal["mlp", "attn", "block"]
SIGN = "the largest component of every basis vector is positive; a projection does not depend on it"
_SPECTRUM = 64  # eigenvalues kept in the attachment, per layer and modality


@dataclass(frozen=True)
class CARE:
    """Fits CARE; see the module's docstring for what the options mean.

    Attributes:
        variant: ``official`` to the letter, or ``corrected``.
        fusion: how the two modalities' corrections are combined.
        layers: decoder layers whose ``site`` is changed, from 0; None: the one in the middle.
        textual_layers: layers of the textual subspace where they differ; None: ``layers``.
        rank: k, the dimension of each subspace.
        alpha: α, the strength; 1 removes, more reflects.
        beta: β of ``injection``.
        floor: directions with λ at or below it are left out of the k (the first always stays).
        contrast: what makes a record of the fit split malicious.
        centre: what Σ_m is about: the malicious (``own``) or the ``benign`` mean.
        shrinkage: of Σ_b, in ``corrected``.
        site: ``mlp``, ``attn`` or ``block`` outputs; ``official`` knows ``mlp`` only.
        modalities: which of the two subspaces act.
        selection, visual_share, textual_share, with_response: which tokens are pooled; see :class:`TokenChoice`.
        scope, phase: which tokens are changed, and when.
    """

    variant: Variant = "corrected"
    fusion: Fusion = "adaptive"
    layers: tuple[int, ...] | None = None
    textual_layers: tuple[int, ...] | None = None
    rank: int = 8
    alpha: float = 1.0
    beta: float = 1.0
    floor: float = 0.0
    contrast: Contrast = "carrier"
    centre: Centre = "own"
    shrinkage: Shrinkage = "ledoit-wolf"
    site: Where = "mlp"
    modalities: Modalities = "both"
    selection: Selection = "none"
    visual_share: float = 1 / 8
    textual_share: float = 0.2
    with_response: bool = False
    scope: Scope = "all"
    phase: Phase = "both"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"k = {self.rank} is not positive.", "CARE needs at least one direction.")
        if self.variant == "official" and self.site != "mlp":
            raise UsageError(
                f"The official variant acts at MLP outputs, not at {self.site}.", "Use --variant corrected there."
            )
        if self.fusion == "masked" and self.scope != "all":
            raise UsageError(
                f"Masked fusion gives each modality its own tokens, so the scope cannot be {self.scope!r}.",
                "Leave out --scope.",
            )
        _ = self.tokens  # its shares are checked

    @property
    def tokens(self) -> TokenChoice:
        """Which tokens the statistics come from."""
        return TokenChoice(self.selection, self.visual_share, self.textual_share, self.with_response)

    def fit(
        self, model: TokenSource, records: Iterable[Example], *, outcomes: Mapping[str, str] | None = None
    ) -> Adapter:
        """Fit on the ``fit`` split, all its carriers.

        Args:
            outcomes: for the contrast ``behaviour``, what the bare model does with harmful records, by id.

        Raises:
            UsageError: a role or a modality has no or too few records, k exceeds the width, or a layer does
                not exist.
        """
        by_role = roles(list(records), self.contrast, outcomes)
        sites = sorted({self.source(layer) for layer in self._layers(model)})
        used = [record for group in by_role.values() for record in group]
        return self.solve(model, collect(model, by_role, sites, self.tokens), used)

    def source(self, layer: int) -> Site:
        """Where the statistics of ``layer`` come from."""
        return Site.block(layer) if self.variant == "official" else Site(self.site, layer)

    def solve(self, model: TokenSource, statistics: CareStatistics, records: Sequence[Example]) -> Adapter:
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
        for layer, modalities in self._layers(model).items():
            subspaces = {modality: self._subspace(statistics, layer, modality) for modality in modalities}
            interventions += self._interventions(Site(self.site, layer), subspaces)
            found[str(layer)] = self._describe(layer, subspaces)
        info = AdapterInfo(
            method="care",
            variant=self.variant,
            sign_convention=SIGN,
            hyperparameters=self._hyperparameters(model),
            seed=None,
            base=model.base,
            data=describe_data(records),
            versions=library_versions(),
        )
        return Adapter(info, tuple(interventions), {"care": {"layers": found}})

    def _layers(self, model: TokenSource) -> dict[int, tuple[Modality, ...]]:
        """Layers in order, each with the modalities that act there."""
        depth = model.base.n_layers
        visual = self.layers if self.layers is not None else (depth // 2,)
        wanted = {"visual": visual, "textual": visual if self.textual_layers is None else self.textual_layers}
        acting = {name: set(wanted[name]) for name in MODALITIES if self.modalities in ("both", name)}
        layers = sorted(set().union(*acting.values()))
        if not layers:
            raise UsageError("No layer was given.", "Name at least one, for example --layers 3-5.")
        for layer in layers:
            Site(self.site, layer).require_within(depth)
        return {layer: tuple(name for name in acting if layer in acting[name]) for layer in layers}

    def _hyperparameters(self, model: TokenSource) -> dict[str, Any]:
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.layers is None:
            values["layers"] = [model.base.n_layers // 2]
        return values

    def _subspace(self, statistics: CareStatistics, layer: int, modality: Modality) -> Subspace:
        benign, malicious = statistics.of(self.source(layer), modality)
        return safety_subspace(
            benign,
            malicious,
            self.rank,
            variant=self.variant,
            centre=self.centre,
            rule=self.shrinkage,
            floor=self.floor,
        )

    def _interventions(self, site: Site, subspaces: dict[Modality, Subspace]) -> Iterator[Intervention]:
        if self.fusion in ("adaptive", "parallel") and len(subspaces) > 1:
            tensors = {
                name: value
                for modality, subspace in subspaces.items()
                for name, value in ((f"{modality}_basis", subspace.basis), (f"{modality}_mean", subspace.mean))
            }
            op = "AdaptiveProjection" if self.fusion == "adaptive" else "ParallelProjection"
            yield self._intervention(op, site, self.scope, {**tensors, "alpha": torch.tensor(self.alpha)})
            return
        for modality, subspace in subspaces.items():
            scope: Scope = self.scope
            if self.fusion == "masked":
                scope = "vision" if modality == "visual" else "text"
            if self.fusion == "injection":
                tensors = {"basis": subspace.basis, "benign": subspace.mean, "beta": torch.tensor(self.beta)}
                yield self._intervention("BenignInjection", site, scope, tensors)
            else:
                tensors = {"basis": subspace.basis, "mean": subspace.mean, "beta": torch.tensor(self.alpha)}
                yield self._intervention("SubspaceProjection", site, scope, tensors)

    def _intervention(self, op: str, site: Site, scope: Scope, tensors: dict[str, Tensor]) -> Intervention:
        stored = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
        return Intervention(op, site, scope, self.phase, stored)

    def _describe(self, layer: int, subspaces: dict[Modality, Subspace]) -> dict[str, Any]:
        strength = 1.0 if self.fusion == "injection" else self.alpha
        entry: dict[str, Any] = {"site": str(Site(self.site, layer)), "statistics_site": str(self.source(layer))}
        for modality, subspace in subspaces.items():
            entry[modality] = {
                "eigenvalues": subspace.eigenvalues[: max(_SPECTRUM, self.rank)].tolist(),
                "rank": subspace.basis.shape[1],
                "benign": subspace.benign,
                "malicious": subspace.malicious,
                "shrinkage": subspace.shrinkage,
                "gain": list(subspace.gain(strength)),
            }
        if len(subspaces) > 1:
            entry["overlap"] = principal_cosines(*(subspace.basis for subspace in subspaces.values()))
        return entry
