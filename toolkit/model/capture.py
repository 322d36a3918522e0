"""Streaming hidden states: nothing that grows with the number of records is kept."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ...adapters.protocols import Pool
from ..data.records import Record
from .inputs import Request

if TYPE_CHECKING:
    from .vlm import VLM


class Reached(Exception):
    """The deepest wanted site has been seen; the rest of the forward pass is not needed."""


class FeatureCache:
    """Image features by picture, so that the tower runs once per picture; the oldest leave first.

    Usable where the model takes ready-made features and each row of pixels gives its own, whatever the other rows are.
    """

    def __init__(self, model: nn.Module, capacity: int = 4096) -> None:
        self._model, self._capacity = model, capacity
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        parameters = inspect.signature(model.forward).parameters
        self.takes_features = "mm_encoder_outputs" in parameters
        self._stacked = False
        self.runs = 0

    def usable_for(self, pictures: Mapping[str, Tensor]) -> bool:
        """Whether pictures are rows of pixels and nothing else, such as sizes or masks."""
        return self.takes_features and pictures.keys() == {"pixel_values"}

    def clear(self) -> None:
        """Forget everything (the tower's weights have changed)."""
        self._features.clear()

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "pictures channels height width"]) -> dict[str, Any]:
        """The model's ``mm_encoder_outputs`` argument for these pictures."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        keys = [hashlib.sha256(row.float().cpu().numpy()).digest() for row in pixels]
        new = {key: row for row, key in enumerate(keys) if key not in self._features}
        found = {key: self._features[key] for key in keys if key in self._features}
        if new:
            rows = pixels[list(new.values())]
            output = self._model.get_image_features(rows, return_dict=True).pooler_output
            self._stacked = isinstance(output, Tensor)
            self.runs += len(rows)
            # Each row is copied: a view would keep its whole batch alive.
            found |= {key: feature.clone() for key, feature in zip(new, output, strict=True)}
        for key in keys:
            self._features[key] = found[key]
            self._features.move_to_end(key)
        while len(self._features) > self._capacity:
            self._features.popitem(last=False)
        features = [found[key] for key in keys]
        # Families differ in whether they join the rows themselves.
        return {"image": BaseModelOutputWithPooling(pooler_output=torch.stack(features) if self._stacked else features)}


def capture(
    vlm: VLM, units: Sequence[Sequence[Record]], sites: Sequence[Site], pool: Pool, batch_size: int
) -> Iterator[tuple[list[Record], dict[Site, Float[Tensor, "batch d_model"]]]]:
    """Run records through the model and yield pooled hidden states batch by batch.

    Records are batched by length to waste little padding; those of one unit stay together. The
    forward pass stops at the deepest wanted site.

    Args:
        units: groups of records, usually pairs or single ones.
        pool: ``last`` prompt position, or the mean over all, ``vision`` or ``text`` tokens.

    Yields:
        The records of a batch, and per site their states [batch, d_model] in float32 on the CPU.

    Raises:
        UsageError: there are no records, or a site does not exist.
    """
    if not units or not sites:
        raise UsageError("There are no records or no sites to read states from.", "Check the split and the layers.")
    order = vlm.parts.sites()
    missing = [site for site in sites if site not in order]
    if missing:
        vlm.parts.module(missing[0])  # names what is wrong
    deepest = max(sites, key=order.index)
    cached = not any(site.kind in ("vision", "projector") for site in sites)
    if not cached and vlm.parts.family.repacks:
        raise UsageError(
            f"{type(vlm.model).__name__} rearranges its image features after the projector, so that states there "
            "belong to no record.",
            "Use a site of a decoder layer.",
        )
    seen: dict[Site, Tensor] = {}
    for batch in batches(units, batch_size):
        requests = [Request(record.prompt, record.picture()) for record in batch]
        inputs = vlm.prepare(requests)
        mask = torch.from_numpy(inputs.attention_mask).bool()
        vision = torch.from_numpy(inputs.vision_mask)
        weights = _pool_weights(mask, vision, pool).to(vlm.device)
        counts = [count for count in vision.sum(1).tolist() if count]
        seen.clear()
        with ExitStack() as stack:
            for site in sites:
                hook = _reader(site, seen, weights, counts, stop=site == deepest)
                module = vlm.parts.module(site)
                register = module.register_forward_pre_hook if site.kind == "vision" else module.register_forward_hook
                stack.callback(register(hook).remove)
            try:
                vlm.model(**vlm.arguments(inputs, cached_features=cached), use_cache=False)
            except Reached:
                pass
        yield batch, dict(seen)


def batches(units: Sequence[Sequence[Record]], batch_size: int) -> Iterator[list[Record]]:
    """Units of similar length together, at most ``batch_size`` records at a time where units allow it."""

    def length(unit: Sequence[Record]) -> tuple[bool, int]:
        return any(record.image for record in unit), max(len(record.prompt) for record in unit)

    batch: list[Record] = []
    for unit in sorted(units, key=length):
        if batch and len(batch) + len(unit) > batch_size:
            yield batch
            batch = []
        batch = [*batch, *unit]
    if batch:
        yield batch


def _pool_weights(
    mask: Bool[Tensor, "batch seq"], vision: Bool[Tensor, "batch seq"], pool: Pool
) -> Float[Tensor, "batch seq"]:
    """Weights that sum to 1 over the pooled tokens; rows without such tokens get zeros."""
    if pool == "last":
        chosen = torch.zeros_like(mask)
        chosen[:, -1] = True
    else:
        chosen = mask & {"mean": mask, "vision": vision, "text": ~vision}[pool]
    weights = chosen.float()
    return weights / weights.sum(1, keepdim=True).clamp_min(1)


def _reader(site: Site, seen: dict[Site, Tensor], weights: Tensor, counts: Sequence[int], stop: bool):
    def read(module: nn.Module, args: Any, output: Any = None) -> None:
        value = args if output is None else output
        hidden = (value if isinstance(value, Tensor) else value[0]).float()
        if site.kind in ("vision", "projector"):
            pooled = _picture_means(hidden, counts)
        else:
            pooled = (hidden * weights[..., None]).sum(1)
        seen[site] = pooled.cpu()
        if stop:
            raise Reached

    return read


def _picture_means(hidden: Float[Tensor, "... d"], counts: Sequence[int]) -> Float[Tensor, "records d"]:
    """Means over the pictures of each record that has any: image features have no prompt positions.

    Tokens lie in the order of the records; before a projector that merges them there are more by a whole factor.

    Raises:
        UsageError: the tokens are not those that the decoder reads.
    """
    tokens = hidden.reshape(-1, hidden.shape[-1])
    factor, left = divmod(len(tokens), max(sum(counts), 1))
    if left or not factor:
        raise UsageError(
            f"{len(tokens)} states of pictures do not belong to {sum(counts)} image tokens one by one.",
            "This model rearranges its image features; use a site of a decoder layer.",
        )
    return torch.stack([part.mean(0) for part in tokens.split([factor * count for count in counts])])
