"""A method of somebody else's, whole in one file: it draws hidden states towards the mean of harmless ones.

h' = h − σ (h − μ),   μ the mean of harmless text states
"""

from __future__ import annotations

import torch
from pydantic import BaseModel

from safetykit.adapters import Adapter, Corrector, Intervention, Method, Scope, Settings, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, describe_data, library_versions
from safetykit.adapters.layers import Layer
from safetykit.adapters.section import Section
from safetykit.adapters.settings import setting


class Scaling(Settings):
    """What may be chosen."""

    layer: Layer = setting(2, "Decoder layer, from 0.")
    strength: float = setting(0.2, "σ, the share of the way.", ge=0, le=1)
    scope: Scope = setting("last", "Which tokens are changed.")


class TowardsMean(Corrector):
    """h − σ (h − μ)."""

    name = "TowardsMean"
    params = ("mean", "strength")
    strength = "strength"

    def forward(self, hidden, scope, *, mean, strength):
        states = hidden.float()
        return (torch.where(scope > 0, states - strength * (states - mean), states).to(hidden.dtype),)


class Facts(BaseModel):
    """The attachment."""

    distance: float


def figures(value, tag, draw):
    """One point is enough to show that drawing works."""
    with draw.canvas(2.0) as (_, (axes,), buffer):
        axes.plot([0], [value.distance], "o", color=draw.BLUE)
        axes.set_xlabel("layer")
        axes.set_ylabel("distance")
    return [draw.finished(f"{tag}-distance", "Distance to harmless", "Mean distance.", "one point", buffer)]


def fit(settings: Scaling, bench) -> Adapter:
    """Mean of harmless text states, and how far the harmful ones lie."""
    texts = [record for record in bench.records if record.split == "fit" and record.carrier == "text"]
    site = Site.block(settings.layer)
    site.require_within(bench.model.base.n_layers)
    kept = {"harmful": [], "harmless": []}
    for batch, states in bench.model.states([(record,) for record in texts], [site]):
        for record, state in zip(batch, states[site], strict=True):
            kept[record.label].append(state.float())
    mean = torch.stack(kept["harmless"]).mean(0)
    distance = (torch.stack(kept["harmful"]).mean(0) - mean).norm()
    info = AdapterInfo(
        method="scaling",
        variant="mean",
        sign_convention="none",
        hyperparameters=settings.values(),
        seed=None,
        base=bench.model.base,
        data=describe_data(texts),
        versions=library_versions(),
    )
    tensors = {"mean": mean, "strength": torch.tensor(settings.strength)}
    item = Intervention("TowardsMean", site, settings.scope, "both", tensors)
    return Adapter(info, (item,), {"scaling": {"distance": float(distance)}})


METHOD = Method(
    name="scaling",
    title="Scaling",
    summary="Scaling: hidden states drawn towards the mean of harmless ones.",
    settings=Scaling,
    fit=fit,
    example="--strength 0.5",
    ops=(__name__,),
    sections=(
        Section(
            "scaling",
            Facts,
            figures,
            markdown="**The distance.** Harmful texts lie {{ value.distance|number }} from harmless ones.\n",
            html="<p>Harmful texts lie {{ value.distance|number }} from harmless ones.</p>\n",
        ),
    ),
)
