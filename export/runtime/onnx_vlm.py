"""Generating with an export folder under ONNX Runtime: NumPy only, no torch.

:mod:`.graphs` runs the graphs. When an op asks for the text-only state of the same query, prefill first runs the
prompts without their pictures and with the ops off, and hands each op's ``state`` back as its ``reference``.

A detector's risk comes with the prefill. Rows above its threshold get its refusal, and no token is generated for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import DetectorInfo
from ...adapters.artifact.policy import Policy, in_force, trusting
from ...adapters.errors import UsageError
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.generating import Generating, Sampling
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import Generation, Inputs, Request
from ...toolkit.model.streaming import AnswerStream, Streamer, require_one
from ..manifest import ExportManifest, Graph, read_manifest
from ..names import ENABLED, REFERENCE, STATE, intervention
from ..surgery.retrieval import open_retriever
from .batches import Part, gathered
from .canary import Canaries, require_canaries
from .decoding import Decoding, Seeing
from .graphs import Graphs
from .hotswap import Swap, read_swap
from .sampling import Sampler
from .sessions import CPU, require_available
from .unmodified import base_graphs

if TYPE_CHECKING:
    from ...adapters.artifact.adapter import Adapter


class OnnxVLM(Graphs, Generating):
    """An exported VLM.

    Attributes:
        retriever: finds texts for pictures; None where the export does not.
        detector: when requests are refused; None without a detector.
        swapped: what :meth:`swap` has put in the place of the export's own parameters; None without.
    """

    detector: DetectorInfo | None
    swapped: Swap | None

    def __init__(
        self,
        path: Path,
        manifest: ExportManifest,
        inputs: InputProcessor,
        providers: Sequence[str],
        graphs: Mapping[Graph, bytes | Path] | None = None,
        *,
        index: CaptionIndex | Path | None = None,
        bind_to: tuple[str, int] | None = None,
        opened: bool = True,
    ) -> None:
        """Use :meth:`from_pretrained`; ``graphs`` replaces graph files of ``path`` that share its weights.

        ``bind_to`` is the device that runs are bound to; by default that of the first provider, see :class:`Session`.
        With ``opened`` off each graph is opened when it is first run.
        """
        self.detector, self.swapped = manifest.detector, None
        self.retriever = open_retriever(path, manifest.retrieval, index)  # refused, if at all, before graphs are opened
        super().__init__(path, manifest, inputs, providers, graphs, bind_to=bind_to, opened=opened)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        providers: Sequence[str] = CPU,
        *,
        verify: bool = True,
        index: CaptionIndex | Path | None = None,
        policy: Path | str | Policy | None = None,
        opened: bool = True,
    ) -> OnnxVLM:
        """Open an export folder, or the id ``org/name`` of one in the local cache.

        Args:
            providers: ONNX Runtime execution providers; falling back to others is an error.
            verify: compare every file with the digest in the manifest first, in pieces. Off, for files that are too
                large to be read twice at each start, a changed file is not noticed.
            index: what an export searches whose index is not in its graph.
            policy: whose signatures are accepted, see :mod:`safetykit.adapters.artifact.policy`; by default the policy
                in force.
            opened: off, each graph is opened when it is first run, or by :meth:`open`.

        Raises:
            UsageError: no such folder, a provider is not there, the index is missing or not the right one, or a
                policy is in force and ``verify`` off.
            InvalidArtifact: a file is missing or was changed, or a graph does not load.
            SignatureFailed: the policy refuses the folder.
        """
        folder = located(folder)
        require_available(providers)
        with trusting(policy):
            if not verify and in_force() is not None:
                raise UsageError(
                    "A signature says nothing about files that are not compared with the manifest.",
                    "Leave out verify=False, or the policy.",
                )
            manifest = read_manifest(folder, verify=verify)
        return cls(folder, manifest, InputProcessor.from_pretrained(folder), providers, index=index, opened=opened)

    def __repr__(self) -> str:
        """Its folder, architecture, precision, mode, adapters and providers."""
        manifest = self.manifest
        methods = " + ".join(info.method for info in manifest.adapters) or "no adapter"
        swapped = ", swapped" if self.swapped else ""
        return (
            f"OnnxVLM({str(self.path)!r}, {manifest.base.architecture}, {manifest.precision}, {manifest.mode}, "
            f"{methods}{swapped}, {' + '.join(self.providers)})"
        )

    def answered(
        self, requests: Sequence[Request], max_new_tokens: int, sampling: Sampling, streamer: Streamer | None
    ) -> list[Generation]:
        """See :meth:`generate`."""
        sampler = Sampler(sampling)
        if streamer is not None:
            require_one(requests)
        state, inputs = self._read(requests)
        scores, detector = self.scores_of(state), self.detector
        finished = scores["risk"] > 0 if detector else np.zeros(len(requests), dtype=bool)
        eos = np.array(self.inputs.eos_token_ids)
        stream = streamer and AnswerStream(
            streamer,
            self.inputs.eos_token_ids,
            (lambda: float(scores["risk"][0])) if detector else None,
            self.inputs.tokens_of(detector.refusal) if detector else (),
            np.array,
        )
        if stream:
            stream.put(inputs.input_ids)
        tokens: list[list[int]] = [[] for _ in requests]
        for count in range(1, max_new_tokens + 1):
            if finished.all():
                break
            chosen = np.where(finished, self.inputs.pad_token_id, sampler.choose(state.logits[:, -1]))
            finished |= np.isin(chosen, eos)
            for row in np.flatnonzero(~finished):
                tokens[row].append(int(chosen[row]))
            if stream:
                stream.put(chosen)
            if not finished.all() and count < max_new_tokens:
                state = self.step(state, chosen)
        if stream:
            stream.end()
        refusal = detector.refusal if detector else None
        return [
            self.inputs.generation(row, {name: float(value[at]) for name, value in scores.items()}, refusal)
            for at, row in enumerate(tokens)
        ]

    def scores_of(self, state: Decoding) -> dict[str, Float[np.ndarray, " batch"]]:
        """What the ops said of each prompt, see :attr:`Generation.scores`; ``risk`` is above 0 where it is refused."""
        scores = {name: value for name, value in state.extras.items() if value.ndim == 1}
        if self.detector:
            scores["risk"] = scores["risk"] - np.float32(self.detector.threshold)
        return scores

    def join(self, parts: Sequence[Part]) -> Decoding:
        """One batch of some rows of several, to be decoded together; see :func:`.batches.gathered`.

        Args:
            parts: batches, each with the places of the rows that are taken.

        Raises:
            UsageError: the adapter was swapped since one of the prompts was read.
        """
        for state, _ in parts:
            self._require_unswapped(state.swaps)
        return gathered(parts, self._axes, first=self._tokens_first)

    def swap(self, *adapters: Path | str | Adapter, allow_uncorrected_detector: bool = False) -> None:
        """Run with other adapters from now on; answers that are being generated cannot go on.

        Args:
            adapters: as many adapters or adapter folders as the export has, in its order; or one hot-swap export of
                the same base; or the ``.onnx_adapter`` files of its graphs.
            allow_uncorrected_detector: accept a detector that was not fitted under the correctors beside it.

        Raises:
            UsageError: the export's mode is not hot-swap, the adapters are not its ops at its sites, or a detector
                was not fitted under the correctors beside it.
            InvalidArtifact: a parameter is missing, unknown or misshaped, or a file is damaged.
            WrongBase: an adapter was fitted on another base. In every case the adapter before stays.
        """
        self.install(read_swap(adapters, self.manifest, allow_uncorrected_detector=allow_uncorrected_detector))

    def reset(self) -> None:
        """Run with the export's own adapters again."""
        self.install(None)

    def unmodified(self) -> OnnxVLM:
        """The model without its adapters, by the graphs in the folder that share its weights; opened when it is run.

        Its sessions hold weights of their own in memory. Requests are prepared by the same :attr:`inputs`.

        Raises:
            UsageError: the export holds no such graphs.
        """
        plain = self.manifest.model_copy(
            update={
                **dict.fromkeys(("adapters", "interventions", "parameters", "updates"), ()),
                **dict.fromkeys(("gate_state", "branch", "detector", "detector_state", "retrieval")),
                "enforce": False,
            }
        )
        return OnnxVLM(self.path, plain, self.inputs, self.providers, base_graphs(self.path), opened=False)

    def check_canaries(self) -> Canaries:
        """Ask the requests that were recorded with the export, for a server to do at its start.

        Returns:
            What was asked; ``telling`` says how many of them show that the adapters act.

        Raises:
            UsageError: the export has none, or runs with a swapped adapter.
            ParityFailed: the export does not do here what it did where it was made.
        """
        return require_canaries(self)

    def install(self, swap: Swap | None) -> None:
        """Run with what :func:`~.hotswap.read_swap` has read for this export; None for the export's own adapters."""
        self._override(swap.arrays if swap else {})
        self.swapped, self.detector = swap, swap.detector if swap else self.manifest.detector

    def prefill_requests(self, requests: Sequence[Request], *, all_logits: bool = False) -> Decoding:
        """Prepare requests and run :meth:`prefill`, with the text-only branch if an op asks for it."""
        return self._read(requests, all_logits=all_logits)[0]

    def _read(self, requests: Sequence[Request], *, all_logits: bool = False) -> tuple[Decoding, Inputs]:
        swaps, text_only = self._swaps, None
        if self.needs_reference:
            text_only = self.inputs.prepare([request.without_pictures() for request in requests])
        seen = None
        if self.retriever and (rows := self.retriever.pending(requests)):
            seen = self.see(self.inputs.prepare([requests[at] for at in rows]).pictures)
            requests = self.retriever.extended(requests, rows, seen.extras)
            if len(rows) < sum(request.image is not None for request in requests):
                seen = None  # other rows brought their texts along: the batch has more pictures than were seen
        inputs = self.inputs.prepare(requests)
        state = self.prefill(inputs, text_only, seen, all_logits=all_logits)
        self._require_unswapped(swaps)
        return state, inputs

    def retrieved(self, pictures: Sequence[Image.Image]) -> list[tuple[str, ...]]:
        """The texts found for each picture, best first.

        Raises:
            UsageError: this export retrieves nothing, or its external index was not given.
        """
        if self.retriever is None:
            raise UsageError(
                f"{self.path} retrieves nothing.", "Export it with an adapter of `safetykit fit retrieval`."
            )
        seen = self.see(self.inputs.prepare([Request(".", picture) for picture in pictures]).pictures)
        return self.retriever.texts(seen.extras)

    def prefill(
        self,
        inputs: Inputs,
        text_only: Inputs | None = None,
        seen: Seeing | None = None,
        *,
        all_logits: bool = False,
    ) -> Decoding:
        """Run the prompts.

        Args:
            inputs: the batch.
            text_only: the same requests without pictures; needed if :attr:`needs_reference`.
            seen: what :meth:`see` made of the batch's pictures, if that was asked already.
            all_logits: give the logits of all positions; by default those of the last, where the graph lets one choose.

        Raises:
            UsageError: pictures and image tokens do not match, or ``text_only`` is missing.
        """
        feeds: dict[str, np.ndarray] = {}
        if self.needs_reference:
            if text_only is None:
                raise UsageError(
                    "An op of this model needs the text-only branch.", "Pass text_only, or use generate()."
                )
            first = self._prefill(text_only, {ENABLED: np.array(0, np.float32)})
            feeds = {intervention(index, REFERENCE): first.extras[f"{index}.{STATE}"] for index in self._references}
        return self._prefill(inputs, feeds, seen, all_logits=all_logits)

    def with_decoder(self, data: bytes, *, index: CaptionIndex | Path | None = None) -> OnnxVLM:
        """The same export with another decoder graph that shares the weights; it is opened when it is first run."""
        graphs = {**self._graphs, "decoder": data}
        made = OnnxVLM(self.path, self.manifest, self.inputs, self.providers, graphs, index=index, opened=False)
        made.install(self.swapped)
        return made
