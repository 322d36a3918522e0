"""A checkpoint that `safetykit eval` has answer, with or without adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import retrieval_of
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.opening import opened
from ...toolkit.model.vlm import VLM
from .choices import EvalOptions


@contextmanager
def opened_checkpoint(
    model: str,
    adapters: Sequence[Path],
    options: EvalOptions,
    say: Callable[[str], None],
    loader: Callable[..., VLM] | None = None,
) -> Iterator[tuple[VLM, dict[str, Any]]]:
    """The model with its adapters applied, and what its answers depend on; ``say`` is told when it is loaded.

    Args:
        loader: gives the model of a folder; by default it is loaded.

    Raises:
        UsageError: an option cannot act, or a detector was fitted under other correctors.
    """
    loaded = [load_adapter(folder) for folder in adapters]
    _require_use(loaded, options)
    with opened(
        model,
        loaded,
        [str(folder) for folder in adapters],
        data=options.data,
        loading=options.loading(),
        say=say,
        loader=loader,
        index=CaptionIndex.load(options.external_index) if options.external_index else None,
        max_prompt_tokens=options.max_prompt_tokens,
        allow_wrong_base=options.allow_wrong_base,
        allow_uncorrected_detector=options.allow_uncorrected_detector,
    ) as found:
        yield found.vlm, found.identity


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
