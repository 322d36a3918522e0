"""CAST, conditional activation steering (Lee et al., "Programming Refusal with Conditional Activation Steering",
arXiv:2409.05907): a vector that makes a model refuse, added only where the prompt meets a condition.

    h' = h + α f(σ·sim(s, proj_c s)) v,   sim the cosine, proj_c s = tanh(c cᵀs / cᵀc),   f(x) = 1[x > θ]

s is the state of the prompt at the condition layer, h that of every token at the layers that are pushed. The
condition is decided once, by the prompt, and stands while the answer is written.

Condition vector c, of harmful and harmless text states H⁺ and H⁻ at the condition layer, μ halfway of their means:

    ``pca``   first principal component of H⁺ − μ and H⁻ − μ together, signed towards harm (the paper)
    ``mean``  difference of the two means

Condition: layer, σ = ±1 ("larger" or "smaller") and θ are those of the highest F1 for "harmful", as the paper searches
them, but on calibration records of all carriers (ours). Layers up to the first one that is pushed are candidates.

Behaviour vector v: difference of the mean states of harmful and harmless text at each layer that is pushed (ours: the
refusal direction; the paper takes the principal component of states that have read a refusal or a compliance). So α is
in units of that difference.

Further deviations: s is the last position's state (the authors' program: the mean over the prompt's tokens, or the
last). One condition, one behaviour: rules that combine several are not here. The authors' norm that keeps states from
growing is left out; it is off in their program, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..artifact.adapter import Adapter
from ..artifact.deciding import gate_at, require_deciding
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Site
from ..protocols import Example, StateSource, Workbench
from .settings import CAST
from .statistics import Chosen, ConditionStatistics, best_f1, calibration_of, collect, texts_of

SIGN = "the condition vector points towards harmful text, the behaviour vector from harmless to harmful text"


def fit(settings: CAST, model: StateSource, records: Iterable[Example]) -> Adapter:
    """See :meth:`CAST.fit`."""
    records = list(records)
    depth = model.base.n_layers
    layers = sorted({*candidates(settings, depth), *layers_of(settings, depth)})
    adapter = solve(settings, model, collect(model, records, layers), records)
    require_deciding(adapter)
    return adapter


def fit_on(settings: CAST, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    candidates(settings, bench.model.base.n_layers)
    return fit(settings, bench.model, bench.records)


def require_records(settings: CAST, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that lack a label; no model is needed."""
    texts_of(records)
    calibration_of(records)


def layers_of(settings: CAST, depth: int) -> tuple[int, ...]:
    """The layers that are pushed in a decoder of ``depth`` blocks: the middle one, if nothing is said.

    Raises:
        UsageError: one does not exist.
    """
    layers = settings.layers if settings.layers is not None else (depth // 2,)
    for layer in layers:
        Site.block(layer).require_within(depth)
    return tuple(sorted(set(layers)))


def candidates(settings: CAST, depth: int) -> tuple[int, ...]:
    """Layers at which the condition may be read in a decoder of ``depth`` blocks.

    Raises:
        UsageError: there is none, or one does not exist.
    """
    layers = settings.readable(layers_of(settings, depth))
    for layer in layers:
        Site.block(layer).require_within(depth)
    return layers


def solve(settings: CAST, model: StateSource, statistics: ConditionStatistics, records: Sequence[Example]) -> Adapter:
    """See :meth:`CAST.solve`.

    The attachment ``cast`` holds ``{"f1": {str(layer): F1 of its best threshold on calibration records}}``.
    """
    depth = model.base.n_layers
    labels = np.array(statistics.labels)
    found: dict[int, Chosen] = {
        layer: best_f1(np.array(statistics.similarities[settings.condition, layer]), labels)
        for layer in candidates(settings, depth)
    }
    layer = max(found, key=lambda one: found[one].f1)
    chosen, vector = found[layer], statistics.condition(layer, settings.condition)
    scores = chosen.sense * np.array(statistics.similarities[settings.condition, layer])
    interventions, rows = [], []
    for pushed in layers_of(settings, depth):
        own = pushed == layer
        tensors = {
            "weight": vector if own else torch.cat([vector, torch.zeros_like(vector)]),
            "sense": torch.tensor(chosen.sense),
            "threshold": torch.tensor(chosen.threshold),
            "direction": statistics.difference(pushed),
            "alpha": torch.tensor(settings.alpha),
        }
        stored = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
        reads = () if own else (Site.block(layer),)
        interventions.append(
            Intervention("ConditionalAddition", Site.block(pushed), "all", "both", stored, "held", reads)
        )
        rows.append({"what": gate_at(interventions[-1].site), **_opened(scores, chosen.threshold, labels)})
    info = AdapterInfo(
        method="cast",
        variant=settings.condition,
        sign_convention=SIGN,
        hyperparameters={
            **settings.values(),
            "layers": list(layers_of(settings, depth)),
            "condition_layer": layer,
        },
        seed=None,
        base=model.base,
        data=describe_data(used(records)),
        versions=library_versions(),
    )
    attachments: dict[str, Any] = {
        "cast": {"f1": {str(at): one.f1 for at, one in found.items()}},
        "calibration": rows,
    }
    return Adapter(info, tuple(interventions), attachments)


def used(records: Sequence[Example]) -> list[Example]:
    """The records that a fit looks at."""
    return [*texts_of(records), *calibration_of(records)]


def _opened(
    scores: Float[np.ndarray, " records"], threshold: float, harmful: Bool[np.ndarray, " records"]
) -> dict[str, Any]:
    """How often the gate opens on calibration records, and between which scores they lie."""
    opened = scores > threshold
    return {
        "false_positive_rate": float(opened[~harmful].mean()),
        "recall": float(opened[harmful].mean()),
        "scores": [float(scores.min()), float(scores.max())],
    }
