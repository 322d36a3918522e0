"""The refusal direction (Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction",
arXiv:2406.11717): a baseline, and a control.

    r = mean state of harmful text − mean state of harmless text, at the last prompt position of one layer

``addition``  h + αr at that layer, at every token: the model refuses more, harmless requests included. What a gate or
              a null space is worth shows against this.
``ablation``  h − r̂ r̂ᵀh at every layer and token, r̂ = r/‖r‖: nothing stays along it, so the model refuses *less*. It is
              no defence; it shows whether this direction is what the model refuses by.
``random``    h + αρ at that layer, at every token, ρ drawn evenly from all directions and as long as r (ours): what a
              push of this length does wherever it points. A defence has to do better.

Deviations: the paper chooses layer and position by their effect on held-out prompts; ``--sweep`` chooses the layer and
α on calibration records, always at the last position. Ablation is applied to the outputs of blocks, of which those of
attention and MLP are the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Site
from ..protocols import Example, StateSource, Workbench
from .settings import RefusalDirection
from .statistics import Means, collect, texts_of

SIGN = "r points from harmless to harmful text, which an aligned model refuses"


def fit(settings: RefusalDirection, model: StateSource, records: Iterable[Example]) -> Adapter:
    """See :meth:`RefusalDirection.fit`."""
    texts = texts_of(list(records))
    layer = layer_of(settings, model.base.n_layers)
    return solve(settings, model, collect(model, texts, [layer]), texts)


def fit_on(settings: RefusalDirection, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    return fit(settings, bench.model, bench.records)


def require_records(settings: RefusalDirection, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that lack a label; no model is needed."""
    texts_of(records)


def layer_of(settings: RefusalDirection, depth: int) -> int:
    """The layer that is read.

    Raises:
        UsageError: it does not exist.
    """
    layer = depth // 2 if settings.layer is None else settings.layer
    Site.block(layer).require_within(depth)
    return layer


def solve(settings: RefusalDirection, model: StateSource, means: Means, records: Sequence[Example]) -> Adapter:
    """See :meth:`RefusalDirection.solve`."""
    depth = model.base.n_layers
    layer = layer_of(settings, depth)
    r = means.harmful[layer].value - means.harmless[layer].value
    if settings.variant != "ablation":
        pushed = drawn(len(r), settings.seed) * r.norm() if settings.variant == "random" else r
        tensors = {"direction": pushed, "strength": torch.tensor(settings.strength)}
        op, sites = "DirectionAddition", [Site.block(layer)]
    else:
        tensors = {"basis": (r / r.norm())[:, None], "mean": torch.zeros_like(r), "beta": torch.tensor(1.0)}
        op, sites = "SubspaceProjection", [Site.block(at) for at in range(depth)]
    interventions = tuple(
        Intervention(op, site, "all", "both", {name: tensor.float().clone() for name, tensor in tensors.items()})
        for site in sites  # a file holds no tensor twice
    )
    info = AdapterInfo(
        method="refusal-direction",
        variant=settings.variant,
        sign_convention=SIGN,
        hyperparameters={**settings.values(), "layer": layer},
        seed=settings.seed if settings.variant == "random" else None,
        base=model.base,
        data=describe_data(records),
        versions=library_versions(),
    )
    return Adapter(info, interventions, {})


def drawn(width: int, seed: int) -> Float[Tensor, " d_model"]:
    """A direction of length 1, drawn evenly from all."""
    direction: Tensor = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction = direction / direction.norm()
    return direction
