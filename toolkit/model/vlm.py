"""A VLM checkpoint: its parts, its inputs, and what can be done with it in PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ...adapters.protocols import Pool
from ...adapters.statistics.tokens import TokenBatch
from ..data.records import Record
from ..data.sources import model_path
from ..index.caption_index import CaptionIndex
from .answering import answer
from .capture import capture
from .features import FeatureCache
from .generating import Generating, Sampling
from .hooks import AppliedAdapters
from .inputs import InputProcessor
from .parts import Parts
from .requests import Generation, Inputs, Request
from .retriever import Retriever, retriever_of
from .streaming import Streamer
from .token_states import stream_tokens
from .updates import updated
from .weights import Weights, empty_model


class VLM(Generating):
    """A transformers image-text-to-text model with its processor.

    Attributes:
        model: the transformers model, in evaluation mode.
        inputs: turns requests into model inputs.
        parts: the modules that sites refer to.
        weights: the values of the parameters.
        index: what adapters search whose index is not their own; set it before they are applied.
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
        self._path = Path(path) if path is not None else _folder_of(model)
        self.model: Any = model.eval()  # what its class of transformers has
        if not isinstance(processor, InputProcessor):
            ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
            processor = InputProcessor(processor, model.config, ends)
        self.inputs: InputProcessor = processor
        self.parts = Parts.find(model)
        self.weights = Weights(model)
        self.features = FeatureCache(model)
        self.index: CaptionIndex | None = None
        self.on: GraphWeights | None = None
        self._last_fed: WeakKeyDictionary[Any, dict[str, np.ndarray]] = WeakKeyDictionary()  # by KV cache
        self._hooks: AppliedAdapters | None = None
        self._retriever: Retriever | None = None

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> VLM:
        """Load a checkpoint folder, or ``reference:mild``; only safetensors are read and nothing is downloaded.

        Raises:
            UsageError: the folder is missing, holds no VLM, or a part was not found.
        """
        from transformers import AutoModelForImageTextToText

        folder = model_path(folder)
        inputs = InputProcessor.from_pretrained(folder)
        with _loading(folder):
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
            )
        return cls(model.to(device), inputs, path=folder)

    @classmethod
    def without_weights(cls, folder: Path | str) -> VLM:
        """A checkpoint folder whose weights stay on disk until :meth:`load`: it cannot be run, but exported.

        Raises:
            UsageError: the folder is missing, holds no VLM, or a part was not found.
            InvalidArtifact: weights are damaged, or others than the configuration says.
        """
        folder = model_path(folder)
        inputs = InputProcessor.from_pretrained(folder)
        if getattr(inputs.config, "quantization_config", None):  # how to read its weights its quantiser knows
            return cls.from_pretrained(folder)
        with _loading(folder):
            model, weights = empty_model(folder)
        vlm = cls(model, inputs, path=folder)
        vlm.weights = weights
        return vlm

    @property
    def loaded(self) -> bool:
        """Whether the model holds its weights."""
        return self.device.type != "meta"

    def load(self) -> None:
        """Load the weights of a model :meth:`without_weights`; any other stays as it is."""
        if not self.loaded:
            full = VLM.from_pretrained(self.path)
            self.model, self.parts, self.weights, self.features = full.model, full.parts, full.weights, full.features

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

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

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
        )

    def describe(self) -> dict[str, Any]:
        """What `safetykit inspect` shows: parts, sites, shape, fingerprint."""
        parts = {
            "vision tower": self.parts.tower,
            "projector": self.parts.projector,
            "decoder layer": self.parts.layers[0],
            "final norm": self.parts.final_norm,
            "LM head": self.parts.head,
        }
        return {
            "path": str(self.path),
            **self.base.model_dump(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "vocabulary": self.parts.head.weight.shape[0],
            "parts": {name: type(part).__name__ if part is not None else None for name, part in parts.items()},
            "sites": [str(site) for site in self.parts.sites()],
            "model_organism": bool(getattr(self.model.config, "safetykit_model_organism", False)),
        }

    def arguments(
        self, inputs: Inputs, *, cached_features: bool = True, pictures: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A batch as keyword arguments of the model's ``forward``, on its device.

        Args:
            cached_features: hand over image features that are known already; False runs the tower, for
                callers that watch it.
            pictures: arguments to give in the place of the batch's pictures.
        """
        arguments: dict[str, Any] = {
            "input_ids": torch.from_numpy(inputs.input_ids).to(self.device),
            "attention_mask": torch.from_numpy(inputs.attention_mask).to(self.device),
        }
        if self._takes_position_ids:
            arguments["position_ids"] = torch.from_numpy(self._fed(inputs)["position_ids"]).to(self.device)
        given = self.tensors(inputs.pictures) if pictures is None else pictures
        touched = self._hooks is not None and self._hooks.touches_vision
        if pictures is None and cached_features and self.features.usable_for(given) and not touched:
            given = {"mm_encoder_outputs": self.features.encode(given["pixel_values"])}
        return {**arguments, **given, **self.tensors(inputs.tokens)}

    def tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Those of a processor's outputs that the model's ``forward`` takes, on its device; floats in its dtype."""
        found = {}
        for name, array in arrays.items():
            if name in self._parameters:
                tensor = torch.from_numpy(array).to(self.device)
                found[name] = tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
        return found

    def see(self, inputs: Inputs) -> Any:
        """Image features of a batch's pictures, as the model's ``get_image_features`` gives them.

        Raises:
            UsageError: the batch has no picture.
        """
        if inputs.pixel_values is None:
            raise UsageError("There is no picture to look at.", "Pass requests with pictures.")
        taken = inspect.signature(self.model.get_image_features).parameters
        pictures = {name: tensor for name, tensor in self.tensors(inputs.pictures).items() if name in taken}
        return self.model.get_image_features(**pictures, return_dict=True)

    def step(self, token_ids: Tensor, mask: Tensor, cache: Any) -> Float[Tensor, "batch 1 vocab"]:
        """Logits after one more token a row.

        Args:
            token_ids: [batch, 1].
            mask: [batch, total], the new tokens included.
            cache: what :meth:`prefill` filled.
        """
        more = {}
        if self._takes_position_ids:
            inputs = self.inputs
            self._last_fed[cache] = inputs.family.step(inputs.config, self._last_fed[cache], mask.cpu().numpy())
            more["position_ids"] = torch.from_numpy(self._last_fed[cache]["position_ids"]).to(self.device)
        logits: Tensor = self.model(
            input_ids=token_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more
        ).logits
        return logits

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)

    @cached_property
    def _takes_position_ids(self) -> bool:
        """Models must be told about padding; of unknown families, sectioned rotary ones work it out."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        return "position_ids" in self._parameters and (bool(self.inputs.family.name) or "mrope_section" not in rope)

    def _fed(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """What an exported decoder would be fed beside embeddings, mask and cache."""
        return self.inputs.family.prefill(self.inputs.config, inputs)

    @torch.inference_mode()
    def states(
        self,
        units: Sequence[Sequence[Record]],
        sites: Sequence[Site],
        pool: Pool = "last",
        batch_size: int = 32,
    ) -> Iterator[tuple[list[Record], dict[Site, Float[Tensor, "batch d_model"]]]]:
        """Stream pooled hidden states; see :func:`safetykit.toolkit.model.capture.capture`."""
        yield from capture(self, units, sites, pool, batch_size)

    @torch.inference_mode()
    def token_states(
        self,
        records: Sequence[Record],
        sites: Sequence[Site],
        *,
        with_response: bool = False,
        batch_size: int = 32,
    ) -> Iterator[TokenBatch]:
        """Stream hidden states of all positions; see :func:`safetykit.toolkit.model.token_states.stream_tokens`."""
        yield from stream_tokens(self, records, sites, batch_size, with_response=with_response)

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
            cache: a transformers ``DynamicCache`` to fill for later steps.

        Returns:
            Logits at all positions, and the inputs they belong to.
        """
        self.fill_references(requests)
        inputs = self.prepare(requests)
        arguments = self.arguments(inputs)
        if cache is not None:
            self._last_fed[cache] = self._fed(inputs)
        return self.model(**arguments, past_key_values=cache, use_cache=cache is not None).logits, inputs

    @torch.inference_mode()
    def answered(
        self, requests: Sequence[Request], max_new_tokens: int, sampling: Sampling, streamer: Streamer | None
    ) -> list[Generation]:
        """See :meth:`generate`."""
        draws = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.do_sample else {}
        return answer(
            self,
            requests,
            self._hooks,
            max_new_tokens,
            seed=sampling.seed,
            streamer=streamer,
            do_sample=sampling.do_sample,
            **draws,
        )

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


def _folder_of(model: torch.nn.Module) -> Path | None:
    """The local folder that transformers loaded a model from, if it still is one."""
    name = getattr(model, "name_or_path", "")
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{folder} cannot be loaded as a vision-language model: {reason}",
            "It needs an image-text-to-text architecture of transformers and safetensors weights.",
        ) from None
