"""Finding the parts of a VLM: tower, projector, decoder blocks, final norm, head.

Works by structure, not by architecture name, and says what it did not find; a family says what structure cannot. Where
the branches of a block are, :mod:`.branches` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ..families import Family, family_or_any
from ..families.structure import projector_of, tower_of
from .branches import Branches, Run
from .kinds import WANTED, require_decoder, text_config
from .taps import Tap

_NORMS = ("norm", "final_layernorm", "final_norm", "ln_f", "final_layer_norm")
_OTHER_NORMS = ("layernorm_embedding", "per_layer_projection_norm")  # of embeddings
_GIVEN = ("self", "input_ids", "attention_mask")
_HELP = "safetykit reads transformers' image-text-to-text models; this one is built differently."


@dataclass(frozen=True)
class Parts:
    """The modules of a VLM that sites refer to.

    ``tower`` is None where no module of its own sees pictures; ``projector`` for towers that end in the decoder's
    width themselves; ``final_norm`` where the last block's output goes to the head as it is.
    """

    tower: nn.Module | None
    projector: nn.Module | None
    embed_tokens: nn.Embedding
    layers: Sequence[nn.Module]
    final_norm: nn.Module | None
    head: nn.Linear
    family: Family
    branches: Branches

    @classmethod
    def find(cls, model: Any, run: Run | None = None) -> Parts:
        """Look the parts up in a transformers image-text-to-text model.

        Args:
            run: one short forward pass of it, which :class:`Branches` watches; None for a model without weights.

        Raises:
            UsageError: naming the part that was not found.
        """
        config = getattr(model, "config", None)
        require_decoder(config)
        require_text(model)
        family = family_or_any(config)
        decoder = model.get_decoder()
        found: Any = _blocks(decoder, getattr(text_config(config), "num_hidden_layers", None))
        wanted: dict[str, Any] = {
            "decoder layers": found,
            "token embedding": _embedding(model),
            "LM head": _head(model, decoder),
        }
        for name, part in wanted.items():
            if part is None:
                raise UsageError(f"No {name} was found in {type(model).__name__}.", _HELP)
        holder, layers = found
        tower = tower_of(model, family)
        return cls(
            tower=tower,
            projector=projector_of(model, family),
            embed_tokens=wanted["token embedding"],
            layers=layers,
            final_norm=_norm_after(holder, layers),
            head=wanted["LM head"],
            family=family,
            branches=Branches(layers, family, run, type(model).__name__),
        )

    def module(self, site: Site) -> nn.Module:
        """The module whose output is ``site`` (for ``vision``: the projector, whose *input* it is).

        Of a branch it is the one that names suggest; :meth:`tap` is sure.

        Raises:
            UsageError: the model does not have this site.
        """
        site.require_within(len(self.layers))
        if site.kind in ("vision", "projector"):
            if self.projector is None:
                raise UsageError(f"This model has no projector, so no site {site}.", "Use a decoder site.")
            return self.projector
        if site.kind == "final_norm":
            if self.final_norm is None:
                last = Site.block(len(self.layers) - 1)
                raise UsageError("This model has no norm after its last block, so no site final_norm.", f"Use {last}.")
            return self.final_norm
        if site.kind == "logits":
            return self.head
        assert site.layer is not None
        return self.layers[site.layer] if site.kind == "block" else self.branches.named(site)

    def tap(self, site: Site) -> Tap:
        """Where ``site`` is read and changed; of a branch after its numbers were checked.

        Raises:
            UsageError: the model does not have this site, or its blocks are not sums of their branches.
        """
        module = self.module(site)
        return self.branches.tap(site) if site.kind in ("attn", "mlp") else Tap(module, before=site.kind == "vision")

    def sites(self) -> list[Site]:
        """Every site of this model, in the order of the forward pass."""
        found = [Site("vision"), Site("projector")] if self.projector is not None else []
        for index in range(len(self.layers)):
            found += [*self.branches.sites(index), Site.block(index)]
        return [*found, *([Site("final_norm")] if self.final_norm is not None else []), Site("logits")]


def require_text(model: Any) -> None:
    """Refuse a model, or a class of them, that reads no text alone: its ``forward`` has no default for a picture.

    Raises:
        UsageError: naming what it asks for.
    """
    taken = inspect.signature(model.forward).parameters.values()
    given = [one for one in taken if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    if missing := [one.name for one in given if one.default is one.empty and one.name not in _GIVEN]:
        called = model.__name__ if isinstance(model, type) else type(model).__name__
        raise UsageError(f"{called} reads no prompt without {', '.join(missing)}.", WANTED)


def _blocks(decoder: nn.Module, count: int | None) -> tuple[nn.Module, nn.ModuleList] | None:
    """The decoder's blocks and what holds them: the outermost list of as many as the configuration says."""
    lists = [
        (holder, child)
        for holder in _by_depth(decoder)
        for child in holder.children()
        if isinstance(child, nn.ModuleList) and len(child)
    ]
    fitting = [one for one in lists if len(one[1]) == count]
    return next(iter(fitting or lists), None)


def _by_depth(module: nn.Module) -> Iterator[nn.Module]:
    level = [module]
    while level:
        yield from level
        level = [child for one in level for child in one.children()]


def _norm_after(holder: nn.Module, layers: nn.ModuleList) -> nn.Module | None:
    """The norm that reads the last block's output: a child of what holds the blocks, of no block's inside."""
    children = dict(holder.named_children())
    norms = [name for name, child in children.items() if "norm" in type(child).__name__.lower()]
    names = [name for name in (*_NORMS, *norms) if name in children and name not in _OTHER_NORMS]
    return children[names[0]] if names else None


def _embedding(model: Any) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None


def _head(model: Any, decoder: Any) -> nn.Linear | None:
    for owner in (model, decoder, getattr(model, "language_model", None)):
        if isinstance(owner, nn.Module) and hasattr(owner, "get_output_embeddings"):
            found = owner.get_output_embeddings()
            if isinstance(found, nn.Linear):
                return found
    return None
