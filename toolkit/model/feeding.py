"""Batches as what a model's ``forward`` takes: on its device, in its dtype, with the positions its family needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters.errors import UsageError
from ..families.cache import has_states
from ..families.structure import sees
from .features import FeatureCache
from .hooks import AppliedAdapters
from .inputs import InputProcessor
from .loading import device_of
from .requests import Inputs


class Feeding:
    """The part of a VLM that hands batches to the model.

    Attributes:
        model: the transformers model.
        inputs: turns requests into model inputs.
        features: image features that are known already.
    """

    model: Any
    inputs: InputProcessor
    features: FeatureCache
    _hooks: AppliedAdapters | None
    _last_fed: WeakKeyDictionary[Any, dict[str, np.ndarray]]  # by KV cache

    if TYPE_CHECKING:  # what the other parts of a VLM have

        @property
        def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return device_of(self.model)

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
                found[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return found

    def see(self, inputs: Inputs) -> Any:
        """Image features of a batch's pictures, as the model's ``get_image_features`` gives them.

        Raises:
            UsageError: the batch has no picture, or the model has no call for its image features alone.
        """
        if inputs.pixel_values is None:
            raise UsageError("There is no picture to look at.", "Pass requests with pictures.")
        if (owner := sees(self.model)) is None:
            raise UsageError(
                f"{type(self.model).__name__} sees pictures only as it reads a prompt.",
                "Take a method that does not look at pictures alone.",
            )
        taken = inspect.signature(owner.get_image_features).parameters
        pictures = {name: tensor for name, tensor in self.tensors(inputs.pictures).items() if name in taken}
        return owner.get_image_features(**pictures, return_dict=True)

    def forward(
        self, inputs: Inputs, cache: Any = None, pictures: Mapping[str, Any] | None = None, **more: Any
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of one pass over prompts, with their gradients where those are recorded.

        Args:
            cache: a transformers ``DynamicCache`` to fill for later steps.
            pictures: see :meth:`arguments`; ``more``: further arguments of the model's ``forward``.
        """
        if cache is not None:
            self._last_fed[cache] = self._fed(inputs)
        arguments = self.arguments(inputs, pictures=pictures)
        logits: Tensor = self.model(**arguments, past_key_values=cache, use_cache=cache is not None, **more).logits
        return logits

    def empty_cache(self) -> Any:
        """What a prefill fills and steps grow: keys and values of all tokens, and states of layers that have some."""
        from transformers import DynamicCache

        text = self.model.config.get_text_config()
        return DynamicCache(config=text) if has_states(text) else DynamicCache()

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
        """Models must be told about padding; of unknown families, those with positions in space work it out."""
        own = any(hasattr(one, "get_rope_index") for one in (self.model, getattr(self.model, "model", None)))
        return "position_ids" in self._parameters and (bool(self.inputs.family.name) or not own)

    def _fed(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """What an exported decoder would be fed beside embeddings, mask and cache."""
        return self.inputs.family.prefill(self.inputs.config, inputs)
