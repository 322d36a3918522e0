"""Running the three graphs of an export under ONNX Runtime: NumPy only, no torch.

Prefill: pictures → ``vision_encoder`` → features scattered into the token embeddings at the image
tokens → ``decoder`` with an empty KV cache. Each step then feeds one token per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from ...adapters.errors import InvalidArtifact, UsageError
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import Inputs
from ..manifest import GRAPHS, ExportManifest, Graph
from ..metadata import read_metadata, read_state
from ..names import (
    ATTENTION_MASK,
    HELD,
    INPUT_IDS,
    INPUTS_EMBEDS,
    KEPT,
    LOGITS,
    PAST,
    PRESENT,
    REFERENCE,
    RISK,
    SCORE,
    VISION_MASK,
    intervention,
    is_own,
    is_state,
    own,
)
from .batches import tokens_first
from .binding import Session
from .chunks import LEAST, Prompts, read_in_chunks, why_whole
from .decoding import Decoding, Seeing, joined_calls
from .rows import run_rows_alone
from .sessions import open_session

_FLOATS: dict[str, type[np.floating]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SESSIONS = ("_vision", "_embed", "_decoder")  # in the order of GRAPHS


class Graphs:
    """The graphs of an export in sessions of their own.

    Attributes:
        path: the export folder.
        manifest: what it holds.
        inputs: turns requests into model inputs, exactly as for PyTorch.
        providers: ONNX Runtime execution providers in use.
    """

    def __init__(
        self,
        path: Path,
        manifest: ExportManifest,
        inputs: InputProcessor,
        providers: Sequence[str],
        graphs: Mapping[Graph, bytes | Path] | None = None,
        *,
        bind_to: tuple[str, int] | None = None,
        opened: bool = True,
    ) -> None:
        """Open the graphs; ``graphs`` replaces graph files of ``path`` that share its weights.

        ``bind_to`` is the device that runs are bound to; by default that of the first provider, see :class:`Session`.
        With ``opened`` off each graph is opened when it is first run, or by :meth:`open`, whose errors are raised here.
        """
        self.path, self.manifest, self.inputs = path, manifest, inputs
        self.providers, self._device = tuple(providers), bind_to
        self._sources = {name: (graphs or {}).get(name, path / manifest.graph_file(name)) for name in GRAPHS}
        self._swaps, self._parameters = 0, dict[str, np.ndarray]()
        self._chunk: int | None = None
        self._graphs = dict(graphs or {})
        held = manifest.interventions if manifest.gate_state == "inputs" else ()
        self._held = [item.index for item in held if item.holds]
        self._references = [
            item.index
            for item in manifest.interventions
            if item.graph == "decoder" and "reference" in item.runtime_inputs
        ]
        if opened:
            self.open()

    def open(self) -> None:
        """Open the graphs that are not open.

        Raises:
            UsageError: a provider is not there.
            InvalidArtifact: a graph does not load, or states another detector than the manifest.
        """
        _ = self._vision, self._embed, self._decoder

    @cached_property
    def _vision(self) -> Session:
        return self._session("vision_encoder")

    @cached_property
    def _embed(self) -> Session:
        return self._session("embed_tokens")

    @cached_property
    def _decoder(self) -> Session:
        session = self._session("decoder")
        said = session.get_modelmeta().custom_metadata_map
        if (read_metadata(said), read_state(said)) != (self.manifest.detector, self.manifest.detector_state):
            raise InvalidArtifact(
                f"{self.path} and its decoder do not state the same detector.", "Export the model again."
            )
        return session

    def _session(self, name: Graph) -> Session:
        session = Session(open_session(self._sources[name], self.providers, data_folder=self.path), device=self._device)
        session.override(self._parameters_of(name))
        return session

    def _parameters_of(self, name: Graph) -> dict[str, np.ndarray]:
        mine = [one.name for one in self.manifest.parameters if one.graph == name]
        return {key: self._parameters[key] for key in mine if key in self._parameters}

    def chunk_prompts(self, tokens: int | None) -> None:
        """Read longer prompts in calls of at most so many tokens, which bounds memory; None reads them in one call.

        Raises:
            UsageError: chunks would be too small, or what is done to a prompt depends on all of it; it is named.
        """
        if tokens is not None and tokens < LEAST:
            raise UsageError(f"Chunks of {tokens} tokens are too small.", f"Take {LEAST} or more.")
        if tokens is not None and (reason := why_whole(self.manifest, self.inputs.family)):
            raise UsageError(f"Prompts of this export are read in one call: {reason}.", "Leave out --prompt-chunk.")
        self._chunk = tokens

    def close(self) -> None:
        """Free the sessions; each is opened again when its graph is next run. Answers that were begun can go on."""
        for name in _SESSIONS:
            self.__dict__.pop(name, None)

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """Free the sessions at the end of the block, unless some were open before it."""
        before = any(name in self.__dict__ for name in _SESSIONS)
        try:
            yield self
        finally:
            if not before:
                self.close()

    @cached_property
    def _keeps(self) -> bool:
        return any(value.name == KEPT for value in self._decoder.get_optional_inputs())

    @cached_property
    def _vision_outputs(self) -> list[str]:
        return [value.name for value in self._vision.get_outputs()]

    @cached_property
    def _types(self) -> dict[str, str]:
        return {value.name: value.type for value in self._decoder.get_inputs()}

    @cached_property
    def _outputs(self) -> list[str]:
        return [value.name for value in self._decoder.get_outputs()]

    @property
    def _float(self) -> type[np.floating]:
        return _FLOATS[self._types[INPUTS_EMBEDS]]

    @property
    def _past_names(self) -> list[str]:
        return [name for name in self._types if name.startswith(PAST)]

    @cached_property
    def _axes(self) -> dict[str, tuple[int | str, ...]]:
        return {one.name: one.shape for one in self.inputs.family.decoder_inputs(self.inputs.config)}

    @cached_property
    def _tokens_first(self) -> bool:
        return tokens_first(lambda inputs: self._prefill(inputs, {}))

    @property
    def needs_reference(self) -> bool:
        """Whether prefill needs the same requests without their pictures."""
        return bool(self._references)

    @cached_property
    def block_evaluations(self) -> int:
        """Decoder blocks that one prefill runs, counted in the graph: those of the answer and those of a branch."""
        from ..surgery.blocks import block_evaluations

        return block_evaluations(self.decoder_source)

    @property
    def half(self) -> bool:
        """Whether the decoder computes in half precision."""
        return self._float == np.float16

    @property
    def decoder_source(self) -> Path | bytes:
        """The decoder's graph: its file, or its bytes where it was given so."""
        return self._sources["decoder"]

    def _override(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Run with these in the place of the graphs' own parameters, which come back where one is not named."""
        self._swaps += 1  # first, so that no step of an answer begun before sees the new parameters unnoticed
        self._parameters = dict(parameters)
        for name, attribute in zip(GRAPHS, _SESSIONS, strict=True):
            if (session := self.__dict__.get(attribute)) is not None:
                session.override(self._parameters_of(name))

    def _require_unswapped(self, swaps: int) -> None:
        if swaps != self._swaps:
            raise UsageError(
                "The adapter was swapped since this prompt was read: its KV cache is the other adapter's.",
                "Read the prompt again, with prefill or generate.",
            )

    def step(
        self, state: Decoding, token_ids: Int[np.ndarray, " batch"], *, live: Bool[np.ndarray, " batch"] | None = None
    ) -> Decoding:
        """Feed one token per row; ``extras`` stay those of the prefill.

        Args:
            live: rows that get a token; the others get padding, which adds nothing to them. By default all do.

        Raises:
            UsageError: the adapter was swapped since the prefill.
        """
        self._require_unswapped(state.swaps)
        ids = np.asarray(token_ids, dtype=np.int64)[:, None]
        more = np.ones_like(ids) if live is None else live[:, None].astype(np.int64)
        mask = np.concatenate([state.attention_mask, more], axis=1)
        embeds, vision_mask = self._embedded(ids), ids == self.inputs.image_token_id
        further = self.inputs.family.step(self.inputs.config, state.further, mask)
        further |= self._scattered(embeds, vision_mask, None)
        held = {intervention(index, HELD): state.scores[f"{index}.{SCORE}"] for index in self._held}
        after = self._run(embeds, mask, further, state.past, vision_mask, held)
        return replace(after, extras=state.extras, scores=after.extras)

    def see(self, pictures: Mapping[str, np.ndarray]) -> Seeing:
        """Run the vision encoder on what the processor made of pictures, see :class:`Inputs`."""
        family, config = self.inputs.family, self.inputs.config
        calls = [self._vision.run(self._vision_outputs, feeds) for feeds in family.vision_calls(config, pictures)]
        found = joined_calls(self._vision_outputs, calls, family.vision_outputs)
        return Seeing(
            found[family.vision_outputs[0]],
            {name: found[source] for source, name in family.scattered.items()},
            {name: value for name, value in found.items() if name.startswith(("retrieved_", "retrieval_"))},
        )

    def _prefill(
        self, inputs: Inputs, feeds: dict[str, np.ndarray], seen: Seeing | None = None, *, all_logits: bool = False
    ) -> Decoding:
        embeds, extras = self._embedded(inputs.input_ids), {}
        if inputs.pictures:
            seen = seen or self.see(inputs.pictures)
            features, extras = seen.features.reshape(-1, seen.features.shape[-1]), seen.extras
            if (wanted := int(inputs.vision_mask.sum())) != len(features):
                raise UsageError(
                    f"The prompts hold {wanted} image tokens, the pictures give {len(features)} features.",
                    "The processor's files and the vision encoder do not belong together; export again.",
                )
            embeds[inputs.vision_mask] = features
        further = self.inputs.family.prefill(self.inputs.config, inputs)
        further |= self._scattered(embeds, inputs.vision_mask, seen)
        if all_logits and self._keeps:
            feeds = {**feeds, KEPT: np.array(0, np.int64)}
        prompts = Prompts.of(inputs, embeds, further)

        def read(some: Prompts, past: Mapping[str, np.ndarray] | None = None) -> Decoding:
            before = dict(past or {name: self._nothing(name, len(some.mask)) for name in self._past_names})
            return self._run(some.embeds, some.mask, dict(some.further), before, some.vision_mask, feeds)

        if self._chunk is None or embeds.shape[1] <= self._chunk:
            state = read(prompts)
        else:
            state = read_in_chunks(read, prompts, self._chunk, self._axes, self._tokens_first, all_logits=all_logits)
        return replace(state, extras={**state.extras, **extras}, scores=state.extras)

    def _nothing(self, name: str, batch: int) -> np.ndarray:
        """A layer's cache before the first token: no keys and values, or states that are zero."""
        if is_state(name):
            (sizes,) = (value.shape[1:] for value in self._decoder.get_inputs() if value.name == name)
            return np.zeros((batch, *sizes), _FLOATS[self._types[name]])
        return np.zeros((batch, self.manifest.n_kv_heads, 0, self.manifest.head_dim), self._float)

    def _embedded(self, ids: Int[np.ndarray, "batch seq"]) -> Float[np.ndarray, "batch seq d_model"]:
        return self._embed.run(None, {INPUT_IDS: ids})[0]

    def _scattered(self, embeds: np.ndarray, vision_mask: np.ndarray, seen: Seeing | None) -> dict[str, np.ndarray]:
        """Further decoder inputs that hold features at image tokens and zeros elsewhere."""
        found = {}
        for one in self.inputs.family.decoder_inputs(self.inputs.config):
            if one.name in self.inputs.family.scattered.values():
                width = one.shape[-1]
                found[one.name] = np.zeros((*vision_mask.shape, width), embeds.dtype)
                if seen is not None:
                    found[one.name][vision_mask] = seen.further[one.name].reshape(-1, width)
        return found

    def _decoded(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the decoder; row by row for one that does not understand padding on the left."""
        if self.manifest.foreign and self.manifest.foreign.rows_alone and len(feeds[INPUTS_EMBEDS]) > 1:
            inputs = {value.name: value.shape for value in self._decoder.get_inputs()}
            outputs = {value.name: value.shape for value in self._decoder.get_outputs()}
            return run_rows_alone(self._called, feeds, inputs, outputs)
        return self._called(feeds)

    def _called(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._decoder.run(self._outputs, feeds), strict=True))

    def _run(
        self,
        embeds: np.ndarray,
        mask: np.ndarray,
        further: dict[str, np.ndarray],
        past: dict[str, np.ndarray],
        vision_mask: np.ndarray,
        feeds: dict[str, np.ndarray],
    ) -> Decoding:
        swaps = self._swaps
        known = {name: value for name, value in further.items() if name in self._types}
        feeds = {INPUTS_EMBEDS: embeds, ATTENTION_MASK: mask, **known, **past, **feeds}
        if VISION_MASK in self._types:
            feeds[VISION_MASK] = vision_mask
        for index in self._references:  # ignored where it is not given: the op is off, or past its prefill
            blank = np.zeros((len(embeds), embeds.shape[-1]), np.float32)
            feeds.setdefault(intervention(index, REFERENCE), blank)
        for index in self._held:  # a prompt decides its gates itself
            feeds.setdefault(intervention(index, HELD), np.zeros(len(embeds), np.float32))
        results = self._decoded(feeds)
        if RISK in results:
            results[own("risk")] = results[RISK]
        return Decoding(
            logits=results[LOGITS].astype(np.float32),
            past={name: results[name.replace(PAST, PRESENT)] for name in self._past_names},
            attention_mask=mask,
            further=further,
            swaps=swaps,
            extras={name.removeprefix(own("")): value for name, value in results.items() if is_own(name)},
        )
