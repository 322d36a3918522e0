"""Whether a type without a family of its own can be exported: its code is looked at, then run without values.

The run is on tensors that have types and shapes only, as the exporter sees them, so that it takes seconds and no weight
for a model of any size. What depends on values there cannot be traced either.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...adapters.errors import UsageError
from .family import SIZES, Family, kv_shape
from .structure import projector_of, sees
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor

_READ = frozenset(  # arguments of a model's forward that an export feeds, or that leave out or tell nothing
    (
        "self",
        "input_ids",
        "pixel_values",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "labels",
        "use_cache",
        "cache_position",
        "logits_to_keep",
        "return_dict",
        "vision_feature_layer",
        "vision_feature_layers",
        "vision_feature_select_strategy",
        "kwargs",
    )
)
_OTHER_KINDS = ("video", "audio", "output_", "encoder_outputs", "loss", "second_per", "feature_attention")
_OF_PICTURES = ("image_", "pixel_", "num_crops", "tile_", "spatial_", "target_sizes", "high_res")
VISION, DECODER = "vision_encoder", "decoder"
ELSEWHERE = "Pass graphs made elsewhere with --base-onnx."


@dataclass(frozen=True)
class Trial:
    """What a run without values found.

    Attributes:
        obstacles: why graphs cannot be exported, by their names; none for those that can.
        taps: inner values of the vision graph that have names, see :class:`Family`.
    """

    obstacles: Mapping[str, str] = field(default_factory=dict)
    taps: tuple[str, ...] = ()


def known(config: Any) -> bool:
    """Whether transformers has a model of pictures and text for a configuration."""
    from transformers import AutoModelForImageTextToText

    return type(config) in AutoModelForImageTextToText._model_mapping


def trial_of(config: Any, family: Family) -> Trial:
    """The trial of a configuration, which is made once."""
    return _tried(_Key(config, family))


class _Key:
    """A configuration by what it says."""

    def __init__(self, config: Any, family: Family) -> None:
        self.config, self.family, self.said = config, family, json.dumps(_said(config.to_dict()), default=str)

    def __hash__(self) -> int:
        return hash(self.said)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.said, self.family) == (other.said, other.family)


def _said(value: Any) -> Any:
    """A configuration without what loading writes into it."""
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if key != "dtype" and not str(key).startswith("_")}
    return value


@functools.lru_cache(maxsize=8)
def _tried(key: _Key) -> Trial:
    return _run(key.config, key.family)


def told(model: Any) -> dict[str, str]:
    """Why graphs of a model cannot be exported, as far as its code tells."""
    taken, found = set(inspect.signature(model.forward).parameters), dict[str, str]()
    owner = sees(model)
    of_pictures = set(inspect.signature(owner.get_image_features).parameters) if owner is not None else set()
    other = _unknown(taken - {"image_sizes"})  # which many take and leave unread
    pictures = _unknown(of_pictures) | {name for name in other if name.startswith(_OF_PICTURES)}
    if owner is None:
        found[VISION] = "it has no call that gives the features of its pictures alone"
    elif pictures:
        found[VISION] = f"its tower reads {_listed(pictures)}, which nothing here computes outside of it"
    if other := other - pictures:
        found[DECODER] = f"its decoder reads {_listed(other)}, which nothing here computes outside of it"
    elif any(hasattr(one, "get_rope_index") for one in (model, getattr(model, "model", None))):
        found[DECODER] = "the positions of its tokens depend on its pictures, in a way that nothing here computes"
    elif "position_ids" not in taken:
        found[DECODER] = "its decoder takes no positions, so that padded rows would count their padding"
    return found


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _unknown(names: set[str]) -> set[str]:
    return {name for name in names - _READ if not any(kind in name for kind in _OTHER_KINDS)}


def seen(model: Any, family: Family, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Image features as the model computes them, and what its projector reads (``vision``) and gives
    (``projector``)."""
    import torch

    inner: dict[str, Tensor] = {}

    def keep(module: Any, read: tuple[Any, ...], given: Any) -> None:
        if read and torch.is_tensor(read[0]) and torch.is_tensor(given):
            inner.update(vision=read[0], projector=given)

    projector = projector_of(model, family)
    handle = None if projector is None else projector.register_forward_hook(keep)
    try:
        pixels = pixel_values.to(next(model.parameters()).dtype)
        owner = sees(model)
        assert owner is not None
        found = owner.get_image_features(pixels, return_dict=True).pooler_output
    finally:
        if handle is not None:
            handle.remove()
    features = torch.cat(list(found)) if isinstance(found, list | tuple) else found
    return (features.flatten(1, -2) if features.ndim > 3 else features), inner


def _run(config: Any, family: Family) -> Trial:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ..model.experts import experts_as_nodes

    try:
        model = _skeleton(config)
    except Exception as error:  # of a configuration that is not as it should be, transformers may raise anything
        return Trial(dict.fromkeys((VISION, DECODER), f"its model cannot be made: {_said_by(error)}"))
    found, taps = told(model), tuple[str, ...]()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), experts_as_nodes(model):
        if VISION not in found:
            try:
                taps = _looked(model, family, config)
            except Exception as error:  # a type that was not written for this may raise anything
                found[VISION] = _said_by(error)
        if DECODER not in found:
            try:
                _decoded(model, family, config)
            except Exception as error:
                found[DECODER] = _said_by(error)
    return Trial(found, taps)


def _said_by(error: Exception) -> str:
    if isinstance(error, UsageError):
        return error.message[:1].lower() + error.message[1:].rstrip(".")
    said = str(error).strip().splitlines() or [""]
    return f"a run without values fails ({type(error).__name__}: {said[0][:200].rstrip('.')})"


def _looked(model: Any, family: Family, config: Any) -> tuple[str, ...]:
    """Run the vision graph on two pictures; its taps."""
    import torch

    sizes = [size if isinstance(size, int) else 2 for size in family.vision_inputs(config)[0].shape]
    features, inner = seen(model, family, torch.empty(sizes))
    if features.ndim not in (2, 3) or features.shape[-1] != config.get_text_config().hidden_size:
        raise UsageError(f"Its features of two pictures have the shape {tuple(features.shape)}.", ELSEWHERE)
    return tuple(named(features, inner))


def named(features: Tensor, inner: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inner values that get names; the output has one of its own."""
    return {name: value for name, value in inner.items() if value.ndim == 3 and value is not features}


def _decoded(model: Any, family: Family, config: Any) -> None:
    """Run the decoder on two rows."""
    import torch
    from transformers.cache_utils import DynamicCache

    text = config.get_text_config()
    require_known_layers(text)
    batch, new = SIZES["batch"], SIZES["sequence"]
    cache = DynamicCache()  # one that keeps the whole past in every layer
    states, mask = torch.empty(batch, new, text.hidden_size), torch.ones(batch, new, dtype=torch.int64)
    more = {one.name: torch.from_numpy(one.example()) for one in family.decoder_inputs(config)}
    logits = family.decoder(model, states, mask, cache, **more)
    if tuple(logits.shape[:2]) != (batch, new):
        raise UsageError(f"Its logits of {batch} rows of {new} tokens have the shape {tuple(logits.shape)}.", ELSEWHERE)
    wanted = (batch, *kv_shape(text)[:1], new, kv_shape(text)[1])
    for part in (part for layer in cache.layers for part in (layer.keys, layer.values)):
        if tuple(part.shape) != wanted:
            raise UsageError(f"Its cache holds {tuple(part.shape)} where its sizes say {wanted}.", ELSEWHERE)


def _skeleton(config: Any) -> Any:
    """The model, its parameters without values."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    from ..model.rotary import rows_apart
    from ..model.weightless import without_weights

    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    made = without_weights(model, torch.float32)
    rows_apart(made)
    return made
