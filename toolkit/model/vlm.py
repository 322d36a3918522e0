"""A VLM checkpoint: its parts, its inputs, and what can be done with it in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.fingerprint import fingerprint
from ...adapters.artifact.manifest import BaseInfo, GraphWeights
from ...adapters.artifact.sites import Site
from ...adapters.artifact.store import require_base, require_weights
from ...adapters.errors import UsageError
from ...adapters.protocols import Pool, Trajectories
from ...adapters.statistics.tokens import TokenBatch, whole
from ..data.records import Record
from ..index.caption_index import CaptionIndex
from ..progress import Progress
from .answering import answer
from .batching import BatchSize, fitting
from .capture import capture
from .description import describe
from .features import FeatureCache
from .feeding import Feeding
from .generating import Generating, Sampling
from .hooks import AppliedAdapters
from .inputs import InputProcessor
from .loadable import Loadable
from .loading import folder_of
from .options import LoadOptions
from .parts import Parts
from .requests import Generation, Inputs, Request
from .retriever import Retriever, retriever_of
from .rotary import rows_apart
from .streaming import Streamer
from .token_states import stream_tokens
from .trajectories import stream_trajectories
from .updates import updated
from .weights import Weights


class VLM(Loadable, Feeding, Generating):
    """A transformers image-text-to-text model with its processor.

    Attributes:
        model: the transformers model, in evaluation mode.
        inputs: turns requests into model inputs.
        parts: the modules that sites refer to.
        weights: the values of the parameters.
        batch_size: how many rows run through it at once.
        index: what adapters search whose index is not their own; set it before they are applied.
        told: hears how many records of a stream of states have gone through; see :meth:`telling`.
        on: the graph's weights that stand in the place of its own; None while it runs with its own.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, *, path: Path | str | None = None) -> None:
        """Use a loaded transformers model, which is put into evaluation mode, and its processor.

        Args:
            processor: of transformers, or an :class:`InputProcessor`.
            path: the checkpoint folder whose weights the model has; by default the local folder that it was loaded
                from. Weights that were changed since must be saved and loaded first: a fingerprint is the folder's.

        Raises:
            UsageError: the model carries unmerged PEFT adapters, a part of it was not found, or the processor is not
                for pictures and text.
        """
        if getattr(model, "peft_config", None):
            raise UsageError(
                "The model carries PEFT adapters, so its weights are not those of a checkpoint.",
                "Merge them (merge_and_unload), save the model and its processor, and load that folder.",
            )
        self._path = Path(path) if path is not None else folder_of(model)
        self.model: Any = model.eval()  # what its class of transformers has
        rows_apart(model)
        if not isinstance(processor, InputProcessor):
            ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
            processor = InputProcessor(processor, model.config, ends)
        self.inputs: InputProcessor = processor
        self.parts = Parts.find(model, self._run_shortly)
        self.weights = Weights(model)
        self.features = FeatureCache(model)
        self.batch_size = BatchSize()
        self._options = LoadOptions()
        self._stored = ""
        self._computes: tuple[torch.dtype, ExitStack] | None = None
        self.index: CaptionIndex | None = None
        self.told: Progress | None = None
        self.on: GraphWeights | None = None
        self._last_fed: WeakKeyDictionary[Any, dict[str, np.ndarray]] = WeakKeyDictionary()  # by KV cache
        self._hooks: AppliedAdapters | None = None
        self._retriever: Retriever | None = None

    def _run_shortly(self) -> None:
        """Run one short prompt, with the ops of applied adapters off."""
        hooks = self._hooks
        before = (hooks.enabled, hooks.references) if hooks else None
        if hooks:
            hooks.enabled, hooks.references = False, {}
        try:
            self.model(**self.arguments(self.inputs.prepare([Request("?")])), use_cache=False)
        finally:
            if hooks and before:
                hooks.enabled, hooks.references = before

    def __repr__(self) -> str:
        """Where it comes from, its architecture, size and type, and whether adapters are applied."""
        config = self.model.config.get_text_config()
        dtype = str(self.model.dtype).removeprefix("torch.")
        applied = ", adapters applied" if self._hooks else ""
        return (
            f"VLM({str(self._path) if self._path else 'in memory'!r}, {type(self.model).__name__}, "
            f"{len(self.parts.layers)} layers of width {config.hidden_size}, {dtype} on {self.device}{applied})"
        )

    @property
    def path(self) -> Path:
        """The checkpoint folder.

        Raises:
            UsageError: the model was handed over without one.
        """
        if self._path is None:
            raise UsageError(
                "This model was not loaded from a local folder, so its fingerprint and files are not known.",
                "Save model and processor with save_pretrained, then VLM.from_pretrained(folder).",
            )
        return self._path

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, configuration, tokenizer, processor and chat template."""
        return fingerprint(self.path)

    @property
    def base(self) -> BaseInfo:
        """What an adapter's manifest says about this model."""
        return BaseInfo(
            fingerprint=self.fingerprint,
            architecture=type(self.model).__name__,
            n_layers=len(self.parts.layers),
            d_model=self.parts.embed_tokens.weight.shape[1],
            on=self.on,
            ran=self.ran,
        )

    def describe(self, *, fingerprint: bool = True) -> dict[str, Any]:
        """See :func:`safetykit.toolkit.model.description.describe`."""
        return describe(self, fingerprint=fingerprint)

    @torch.inference_mode()
    def states(
        self,
        units: Sequence[Sequence[Record]],
        sites: Sequence[Site],
        pool: Pool = "last",
        batch_size: int | None = None,
    ) -> Iterator[tuple[list[Record], dict[Site, Float[Tensor, "batch d_model"]]]]:
        """Stream pooled hidden states; see :func:`safetykit.toolkit.model.capture.capture`."""
        yield from capture(self, units, sites, pool, self._rows(batch_size))

    @torch.inference_mode()
    def token_states(
        self,
        records: Sequence[Record],
        sites: Sequence[Site],
        keep: Callable[[TokenBatch], Any] = whole,
        *,
        with_response: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """Stream states of all positions; see :func:`safetykit.toolkit.model.token_states.stream_tokens`."""
        yield from stream_tokens(self, records, sites, self._rows(batch_size), keep, with_response=with_response)

    def trajectories(
        self, records: Sequence[Record], sites: Sequence[Site], tokens: int
    ) -> Iterator[tuple[list[Record], Trajectories]]:
        """Stream states of greedy answers; see :func:`safetykit.toolkit.model.trajectories.stream_trajectories`."""
        yield from stream_trajectories(self, records, sites, self.batch_size, tokens)

    def _rows(self, asked: int | None) -> BatchSize:
        return self.batch_size if asked is None else BatchSize(asked)

    @contextmanager
    def telling(self, progress: Progress | None) -> Iterator[None]:
        """Tell ``progress`` how far each stream of states is, until the block ends."""
        before, self.told = self.told, progress
        try:
            yield
        finally:
            self.told = before

    @contextmanager
    def applied(
        self, *adapters: Adapter, allow_wrong_base: bool = False, enforce: bool = False
    ) -> Iterator[AppliedAdapters]:
        """Run with ``adapters`` (outer blocks act first) until the block ends.

        Args:
            enforce: force the logits of requests that the detector refuses, as an enforcing export does.

        Raises:
            WrongBase: an adapter was fitted on another model and ``allow_wrong_base`` is off.
            UsageError: a site does not exist in this model, two detectors, or none to enforce.
        """
        for adapter in adapters:
            if not allow_wrong_base:
                require_base(adapter, self.fingerprint, str(self.path))
                require_weights(adapter, self.on, str(self.path))
        if self._hooks is not None:
            raise UsageError(
                "Adapters are already applied to this model.", "Apply them together: applied(first, second)."
            )
        retriever = retriever_of(adapters, self.index)
        hooks = AppliedAdapters(self.model, self.parts, self.inputs.image_token_id, adapters, enforce=enforce)
        with updated(self, [update for adapter in adapters for update in adapter.updates]), hooks.active():
            self._hooks, self._retriever = hooks, retriever
            try:
                yield hooks
            finally:
                self._hooks = self._retriever = None

    @torch.inference_mode()
    def prepare(self, requests: Sequence[Request]) -> Inputs:
        """Requests as model inputs; an applied adapter that prefixes retrieved texts looks at their pictures first."""
        rows = self._retriever.pending(requests) if self._retriever else []
        if self._hooks and self._retriever and rows:
            self.see(self.inputs.prepare([requests[at] for at in rows]))
            extras = {name.rpartition(".")[2]: value.numpy(force=True) for name, value in self._hooks.extras.items()}
            requests = self._retriever.extended(requests, rows, extras)
        return self.inputs.prepare(requests)

    @torch.inference_mode()
    def prefill(
        self, requests: Sequence[Request], cache: Any = None
    ) -> tuple[Float[Tensor, "batch seq vocab"], Inputs]:
        """One forward pass over prompts.

        Ops that ask for it first get the text-only state of the same query.

        Args:
            cache: what :meth:`empty_cache` gives, to be filled for later steps.

        Returns:
            Logits at all positions, and the inputs they belong to.
        """
        self.fill_references(requests)
        inputs = self.prepare(requests)
        return self.forward(inputs, cache), inputs

    @torch.inference_mode()
    def answered(
        self, requests: Sequence[Request], max_new_tokens: int, sampling: Sampling, streamer: Streamer | None
    ) -> list[Generation]:
        """See :meth:`generate`."""
        draws = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.do_sample else {}

        def run(some: Sequence[Request]) -> list[Generation]:
            return answer(
                self,
                some,
                self._hooks,
                max_new_tokens,
                seed=sampling.seed,
                streamer=streamer,
                do_sample=sampling.do_sample,
                **draws,
            )

        return [one for _, found in fitting(requests, self.batch_size, len(requests), run) for one in found]

    def fill_references(self, requests: Sequence[Request]) -> None:
        """Run the text-only branch for ops that are supervised by it, with the ops off."""
        hooks = self._hooks
        if hooks is None or not hooks.needs_reference:
            return
        text_only = self.inputs.prepare([request.without_pictures() for request in requests])
        hooks.enabled, hooks.references = False, {}  # those of the batch before do not fit this one
        try:
            self.model(**self.arguments(text_only), use_cache=False)
        finally:
            hooks.enabled = True
        hooks.references = {
            index: hooks.extras[f"{index}.state"]
            for index, item in enumerate(hooks.interventions)
            if "state" in item.make_op().extras
        }
