"""A checkpoint that `safetykit eval` has answer, with or without adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...adapters.artifact.adapter import the_detector
from ...adapters.artifact.stack import require_fitted_stack, require_reading
from ...adapters.artifact.store import load_adapter, manifest_digest
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import retrieval_of
from ...toolkit.data.sources import model_path
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.retriever import retriever_of
from ...toolkit.model.shape import decoder_shape, require_adaptable, require_fitted_on, require_prompt_tokens
from ...toolkit.model.vlm import VLM
from .choices import EvalOptions


@contextmanager
def opened_checkpoint(
    model: str, adapters: Sequence[Path], options: EvalOptions, say: Callable[[str], None]
) -> Iterator[tuple[VLM, dict[str, Any]]]:
    """The model with its adapters applied, and what its answers depend on; ``say`` is told when it is loaded.

    Raises:
        UsageError: an option cannot act, or a detector was fitted under other correctors.
    """
    loaded = [load_adapter(folder) for folder in adapters]
    _require_use(loaded, options)
    require_fitted_stack(
        loaded, [str(folder) for folder in adapters], model=model, data=options.data,
        allow=options.allow_uncorrected_detector,
    )  # fmt: skip
    folder = model_path(model)
    shape = decoder_shape(folder)
    require_prompt_tokens(options.max_prompt_tokens, shape and shape.most_tokens)
    require_adaptable(loaded, shape, model, allow_wrong_base=options.allow_wrong_base)
    the_detector(loaded)
    require_reading(loaded)
    index = CaptionIndex.load(options.external_index) if options.external_index else None
    retriever_of(loaded, index)
    known = None
    if loaded and not options.allow_wrong_base:
        say("comparing fingerprints")
        known = require_fitted_on(loaded, folder, model)
    say("loading")
    vlm = VLM.from_pretrained(folder, **options.loading())
    if known is not None:
        vlm.fingerprint = known
    vlm.inputs.limit(options.max_prompt_tokens)
    vlm.index = index
    with vlm.applied(*loaded, allow_wrong_base=options.allow_wrong_base):
        yield (
            vlm,
            {
                "model": vlm.fingerprint,
                "device or type": vlm.ran and vlm.ran.model_dump(),
                "adapters": [*map(manifest_digest, loaded)],
            },
        )


def _require_use(adapters: Sequence[Any], options: EvalOptions) -> None:
    """Refuse options that do nothing for a checkpoint with these adapters."""
    if options.swap:
        raise UsageError("A checkpoint has no adapter to swap.", "Pass it with --adapter.")
    options.require_use(("providers",), False, "an export: a checkpoint runs in PyTorch")
    options.require_use(("allow_wrong_base",), bool(adapters), "an adapter")
    detects = any(adapter.detector is not None for adapter in adapters)
    options.require_use(("allow_uncorrected_detector",), detects, "a detector")
    found = retrieval_of(adapters)
    searches = found is not None and found[0].external
    options.require_use(("external_index",), searches, "an adapter that searches an index outside the graph")
