"""What capturing states and updating weights ask of a VLM, so that neither needs to know the class that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import InputProcessor
from .parts import Parts
from .requests import Inputs, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..progress import Progress
    from .features import FeatureCache
    from .weights import Weights


class Running(Protocol):
    """A VLM that can be run (``toolkit.VLM``).

    Attributes:
        model: the transformers model.
        parts: its tower, projector, blocks, norm and head.
        features: image features that are known already.
        weights: the values of the parameters.
        told: hears how many records of a stream of states have gone through.
    """

    model: PreTrainedModel
    parts: Parts
    features: FeatureCache
    weights: Weights
    told: Progress | None

    @property
    def path(self) -> Path:
        """Folder of the checkpoint."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in."""
        ...

    def prepare(self, requests: Sequence[Request]) -> Inputs:
        """Requests as model inputs."""
        ...

    def arguments(self, inputs: Inputs, *, cached_features: bool = True) -> dict[str, Any]:
        """A batch as keyword arguments of the model's ``forward``; ``cached_features`` off runs the tower."""
        ...


class Stepping(Running, Protocol):
    """A VLM whose answers are followed token by token (``toolkit.VLM``).

    Attributes:
        inputs: turns requests into model inputs.
    """

    inputs: InputProcessor

    def prefill(
        self, requests: Sequence[Request], cache: Any = None
    ) -> tuple[Float[Tensor, "batch seq vocab"], Inputs]:
        """Logits at all positions of the prompts."""
        ...

    def empty_cache(self) -> Any:
        """What a prefill fills and steps grow."""
        ...

    def step(self, token_ids: Tensor, mask: Tensor, cache: Any) -> Float[Tensor, "batch 1 vocab"]:
        """Logits after one more token a row."""
        ...
