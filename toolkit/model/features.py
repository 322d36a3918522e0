"""Image features that are known already."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST = 2**25
_KNOWN = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


class FeatureCache:
    """Image features by picture, so that the tower runs once per picture; the oldest leave first.

    Args:
        capacity: bytes of features that are kept; by default a twentieth of the weights, or 32 MiB if that is more.

    Usable where the model takes ready-made features and each row of pixels gives its own, whatever the other rows are.
    """

    def __init__(self, model: nn.Module, capacity: int | None = None) -> None:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        self._model, self._capacity = model, max(_LEAST, weights // 20) if capacity is None else capacity
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._held = 0
        parameters = inspect.signature(model.forward).parameters
        self.takes_features = "mm_encoder_outputs" in parameters and hasattr(model, "get_image_features")
        self._stacked = False
        self.runs = 0

    def usable_for(self, pictures: Mapping[str, Tensor]) -> bool:
        """Whether pictures are rows of pixels and nothing else, such as sizes or masks."""
        return self.takes_features and pictures.keys() == {"pixel_values"}

    def clear(self) -> None:
        """Forget everything (the tower's weights have changed)."""
        self._features.clear()
        self._held = 0

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "pictures channels height width"]) -> dict[str, Any]:
        """The model's ``mm_encoder_outputs`` argument for these pictures.

        The pictures themselves, and no features from then on, where the model asks for more than those.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        keys = [hashlib.sha256(row.float().cpu().numpy()).digest() for row in pixels]
        new = {key: row for row, key in enumerate(keys) if key not in self._features}
        found = {key: self._features[key] for key in keys if key in self._features}
        if new:
            rows = pixels[list(new.values())]
            seen = self._model.get_image_features(rows, return_dict=True)
            if seen.keys() - _KNOWN:  # the model asks for more than the features
                self.takes_features = False
                return {"pixel_values": pixels}
            output = seen.pooler_output
            self._stacked = isinstance(output, Tensor)
            self.runs += len(rows)
            # Each row is copied: a view would keep its whole batch alive.
            found |= {key: feature.clone() for key, feature in zip(new, output, strict=True)}
        for key in keys:
            self._held += 0 if key in self._features else found[key].nbytes
            self._features[key] = found[key]
            self._features.move_to_end(key)
        while self._held > self._capacity:
            self._held -= self._features.popitem(last=False)[1].nbytes
        features = [found[key] for key in keys]
        # Families differ in whether they join the rows themselves.
        return {"image": BaseModelOutputWithPooling(pooler_output=torch.stack(features) if self._stacked else features)}
