"""A checkpoint with its adapters applied, everything that can be refused refused before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.stack import require_fitted_stack, require_reading
from ...adapters.artifact.store import manifest_digest
from ..data.sources import model_path
from ..index.caption_index import CaptionIndex
from .hooks import AppliedAdapters
from .retriever import retriever_of
from .shape import decoder_shape, require_adaptable, require_fitted_on, require_prompt_tokens
from .vlm import VLM


@dataclass(frozen=True)
class Opened:
    """A model that runs.

    Attributes:
        vlm: with the adapters applied.
        hooks: of these, with what they see; empty ones where there is no adapter.
        identity: what its answers depend on, by the words in which a user is told of it.
    """

    vlm: VLM
    hooks: AppliedAdapters
    identity: dict[str, Any]


@contextmanager
def opened(
    model: str,
    adapters: Sequence[Adapter],
    called: Sequence[str],
    *,
    data: str,
    loading: Mapping[str, Any],
    say: Callable[[str], None],
    loader: Callable[..., VLM] | None = None,
    index: CaptionIndex | None = None,
    max_prompt_tokens: int | None = None,
    allow_wrong_base: bool = False,
    allow_uncorrected_detector: bool = False,
) -> Iterator[Opened]:
    """Load a checkpoint and apply adapters until the block ends.

    Args:
        called: how the user called the adapters; ``data``: and the records, for what is to be typed next.
        loading: keywords of :meth:`VLM.from_pretrained`.
        say: told each step as it begins.
        loader: gives the model of a folder; see :class:`~safetykit.toolkit.model.kept.Kept`.
        index: what adapters search whose index is not their own.

    Raises:
        WrongBase: an adapter was fitted on another model.
        UsageError: the adapters do not go together, or the model cannot have them.
    """
    require_fitted_stack(adapters, called, model=model, data=data, allow=allow_uncorrected_detector)
    folder = model_path(model)
    shape = decoder_shape(folder)
    require_prompt_tokens(max_prompt_tokens, shape and shape.most_tokens)
    require_adaptable(adapters, shape, model, allow_wrong_base=allow_wrong_base)
    the_detector(adapters)
    require_reading(adapters)
    retriever_of(adapters, index)
    known = None
    if adapters and not allow_wrong_base:
        say("comparing fingerprints")
        known = require_fitted_on(adapters, folder, model)
    say("loading")
    vlm = (loader or VLM.from_pretrained)(folder, **loading)
    if known is not None:
        vlm.fingerprint = known
    vlm.inputs.limit(max_prompt_tokens)
    vlm.index = index
    with vlm.applied(*adapters, allow_wrong_base=allow_wrong_base) as hooks:
        identity = {
            "model": vlm.fingerprint,
            "device or type": vlm.ran and vlm.ran.model_dump(),
            "adapters": [*map(manifest_digest, adapters)],
        }
        yield Opened(vlm, hooks, identity)
