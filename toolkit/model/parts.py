"""Finding the parts of a VLM: tower, projector, decoder blocks, final norm, head.

Works by structure, not by architecture name, and says what it did not find; a family says what structure cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ..families import Family, family_or_any

_TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder")
_PROJECTORS = ("multi_modal_projector", "connector", "projector", "mm_projector", "embed_vision")
_NORMS = ("norm", "final_layernorm", "final_norm", "ln_f")
_ATTENTION = ("self_attn", "attention", "attn")
# Where branches end in a norm of their own (Gemma 2 and 3), it is the norm's output that joins the residual stream. A
# layer that has but the first of the two uses its name for the norm before the MLP.
_POST_NORMS = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class Parts:
    """The modules of a VLM that sites refer to.

    ``projector`` is None for towers that end in the decoder's width themselves.
    """

    tower: nn.Module
    projector: nn.Module | None
    embed_tokens: nn.Embedding
    layers: Sequence[nn.Module]
    final_norm: nn.Module
    head: nn.Linear
    family: Family

    @classmethod
    def find(cls, model: Any) -> Parts:
        """Look the parts up in a transformers image-text-to-text model.

        Raises:
            UsageError: naming the part that was not found.
        """
        decoder, family = model.get_decoder(), family_or_any(getattr(model, "config", None))
        tower = model.get_submodule(family.tower) if family.tower else _child(model, _TOWERS)
        layers = getattr(decoder, "layers", None)
        wanted = {
            "vision tower": tower,
            "decoder layers": layers if isinstance(layers, nn.ModuleList) and len(layers) else None,
            "final norm": _child(decoder, _NORMS, deep=False),
            "token embedding": model.get_input_embeddings(),
            "LM head": model.get_output_embeddings(),
        }
        for name, found in wanted.items():
            if found is None:
                raise UsageError(
                    f"No {name} was found in {type(model).__name__}.",
                    "safetykit reads transformers' image-text-to-text models; this one is built differently.",
                )
        parts = cls(
            tower=tower,
            projector=_projector(model, family),
            embed_tokens=wanted["token embedding"],
            layers=layers,
            final_norm=wanted["final norm"],
            head=wanted["LM head"],
            family=family,
        )
        for index, layer in enumerate(layers):
            if _child(layer, _ATTENTION, deep=False) is None or not hasattr(layer, "mlp"):
                raise UsageError(
                    f"Decoder layer {index} of {type(model).__name__} ({type(layer).__name__}) has no attention and "
                    "MLP branches by their usual names.",
                    "Sites inside this architecture are not known to safetykit.",
                )
        return parts

    def module(self, site: Site) -> nn.Module:
        """The module whose output is ``site`` (for ``vision``: the projector, whose *input* it is).

        Raises:
            UsageError: the model does not have this site.
        """
        site.require_within(len(self.layers))
        if site.kind in ("vision", "projector"):
            if self.projector is None:
                raise UsageError(f"This model has no projector, so no site {site}.", "Use a decoder site.")
            return self.projector
        if site.kind == "final_norm":
            return self.final_norm
        if site.kind == "logits":
            return self.head
        layer = self.layers[site.layer]
        if site.kind == "block":
            return layer
        if own := getattr(self.family, "attention" if site.kind == "attn" else "mlp"):
            return layer.get_submodule(own)
        if hasattr(layer, _POST_NORMS["mlp"]):
            return layer.get_submodule(_POST_NORMS[site.kind])
        return layer.mlp if site.kind == "mlp" else _child(layer, _ATTENTION, deep=False)

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of the forward pass."""
        found = [Site("vision"), Site("projector")] if self.projector is not None else []
        for index in range(len(self.layers)):
            found += [Site("attn", index), Site("mlp", index), Site.block(index)]
        return [*found, Site("final_norm"), Site("logits")]


def _projector(model: nn.Module, family: Family) -> nn.Module | None:
    if family.projector is None:
        return None
    return model.get_submodule(family.projector) if family.projector else _child(model, _PROJECTORS)


def _child(module: nn.Module, names: Sequence[str], *, deep: bool = True) -> nn.Module | None:
    """The child with one of these names: of ``module`` itself or, if ``deep``, of its base model."""
    places = [module, getattr(module, "model", None)] if deep else [module]
    for place in places:
        for name in names:
            if isinstance(child := getattr(place, name, None), nn.Module):
                return child
    return None
