"""A decoder's shape, from a checkpoint's configuration, and what it rules out before weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...adapters.artifact.configuration import json_object
from ...adapters.errors import UsageError, WrongBase

if TYPE_CHECKING:
    from ...adapters.artifact.adapter import Adapter
    from ...adapters.artifact.manifest import BaseInfo
    from ...adapters.artifact.sites import Site

_TEXT_PARTS = ("text_config", "llm_config", "language_config")  # where a configuration describes the decoder
_OF_DECODER = ("block", "attn", "mlp", "final_norm")  # kinds of sites whose states have the decoder's width


class Shape(NamedTuple):
    """Decoder blocks, the width of the states between them, and the longest prompt, in tokens, if one is named."""

    n_layers: int
    d_model: int
    most_tokens: int | None = None

    @classmethod
    def of(cls, config: Any) -> Shape:
        """What a model's configuration says."""
        text = config.get_text_config()
        return cls(int(text.num_hidden_layers), int(text.hidden_size), longest_prompt(config))

    def __str__(self) -> str:
        return f"{self.n_layers} layers of width {self.d_model}"


def decoder_shape(folder: Path) -> Shape | None:
    """The shape that ``config.json`` tells; None where it cannot be read, which loading explains."""
    from .pretrained import config_of

    try:
        return Shape.of(config_of(folder))
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError):
        return None


def written_depth(folder: Path) -> int | None:
    """Decoder blocks as ``config.json`` writes them, without any library; None where it leaves them to a default."""
    config = json_object(folder, "config.json")
    parts = [config[name] for name in _TEXT_PARTS if isinstance(config.get(name), dict)]
    found = (parts or [config])[0].get("num_hidden_layers")
    return found if type(found) is int else None


def longest_prompt(config: Any) -> int | None:
    """The model's own maximum of a prompt's tokens, those of pictures included; None if it names none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def require_prompt_tokens(asked: int | None, most: int | None) -> None:
    """Refuse a limit of prompts that the model cannot have.

    Args:
        asked: for tokens; None for the model's own.
        most: the model's own, see :func:`longest_prompt`.

    Raises:
        UsageError: ``asked`` is below 1, or above ``most``.
    """
    if asked is not None and (asked < 1 or (most is not None and asked > most)):
        raise UsageError(
            f"Prompts cannot have up to {asked} tokens.",
            "Pass 1 or more." if most is None else f"This model takes 1 to {most} (max_position_embeddings).",
        )


def require_same_shape(base: BaseInfo, shape: Shape | None, what: str, called: str, advice: str) -> None:
    """Refuse what belongs to another model, as far as layers and width show it; the weights tell the rest.

    Args:
        base: the model that it belongs to.
        shape: of the model that it is asked to work with; None where it is not known.
        what: "The adapter (care) was fitted on", for the error; ``called``: how the user calls the model.
        advice: what to do.

    Raises:
        WrongBase: naming both shapes.
    """
    if shape is not None and (base.n_layers, base.d_model) != shape[:2]:
        raise WrongBase(
            f"{what} a model of {base.n_layers} layers of width {base.d_model}; {called} has {shape.n_layers} of width "
            f"{shape.d_model}.",
            advice,
        )


def require_adaptable(
    adapters: Sequence[Adapter], shape: Shape | None, called: str, *, allow_wrong_base: bool | None = False
) -> None:
    """Refuse adapters that the model cannot have, as far as its shape shows it.

    Args:
        shape: of the model; None where it is not known, which loading explains.
        called: how the user calls the model.
        allow_wrong_base: those of another model are accepted, where its states have the same width; None where there
            is no such choice.

    Raises:
        WrongBase: an adapter was fitted on a model of another shape.
        UsageError: it was accepted, and a site does not exist or its states have another width.
    """
    if shape is None:
        return
    for adapter in adapters:
        base, method = adapter.info.base, adapter.info.method
        if not allow_wrong_base:
            choice = "" if allow_wrong_base is None else ", or pass --allow-wrong-base; the card then shows it"
            require_same_shape(
                base, shape, f"The adapter ({method}) was fitted on", called, f"Fit it on this model{choice}."
            )
        for site in sites_of(adapter):
            site.require_within(shape.n_layers)
            if site.kind in _OF_DECODER and base.d_model != shape.d_model:
                raise UsageError(
                    f"The adapter ({method}) changes states of width {base.d_model} at {site}; in {called} they have "
                    f"{shape.d_model}.",
                    "Fit it on this model: --allow-wrong-base is for models of the same width.",
                )


def require_fitted_on(adapters: Sequence[Adapter], folder: Path, called: str, *, choice: bool = True) -> str:
    """Refuse adapters of another model, before its weights are loaded: all of its files are read.

    Args:
        folder: of the checkpoint; ``called``: how the user calls it.
        choice: whether the user can accept one of another model.

    Returns:
        The model's fingerprint.

    Raises:
        WrongBase: an adapter was fitted on another one.
    """
    from ...adapters.artifact.fingerprint import fingerprint
    from ...adapters.artifact.store import require_base

    found = fingerprint(folder)
    for adapter in adapters:
        require_base(adapter, found, called, choice=choice)
    return found


def sites_of(adapter: Adapter) -> Iterator[Site]:
    """Every site that an adapter changes or reads."""
    for item in adapter.interventions:
        yield from (*item.reads, item.site)
    if adapter.branch:
        yield from (adapter.branch.safety, adapter.branch.fused)
