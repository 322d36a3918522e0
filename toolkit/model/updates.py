"""Weight updates in PyTorch: new weights for exactly as long as a ``with`` block, or in a checkpoint of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...adapters.artifact.configuration import configuration
from ...adapters.artifact.output import atomic_folder, mark_made, require_free
from ...adapters.artifact.updates import WeightUpdate, by_parameter, compose
from ...adapters.errors import InvalidArtifact, UsageError
from .offload import hold
from .running import Running
from .weights import Weights

# Flags of transformers' text configurations that give linear layers a bias.
_BIAS_FLAGS = ("mlp_bias", "attention_bias", "attention_out_bias", "use_bias", "qkv_bias")
_MADE_BY_SAVING = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Change:
    """All updates of one parameter, found in a model.

    Attributes:
        layer: name of the module that holds the parameter.
        module: that module.
        leaf: the parameter's name in it.
        old: as it is; None for a bias that the linear layer lacks.
        new: as it becomes, on the device and, if no other was asked for, in the dtype of ``old``.
    """

    layer: str
    module: nn.Module
    leaf: str
    old: nn.Parameter | None
    new: Tensor


def find_changes(
    model: nn.Module,
    updates: Sequence[WeightUpdate],
    weights: Weights | None = None,
    dtype: torch.dtype | None = None,
) -> list[Change]:
    """The net changes of ``updates`` in ``model``, one per parameter; the model stays as it is.

    Args:
        weights: the model's values, where they may lie in files.
        dtype: of the new values; by default that of the old.

    Raises:
        InvalidArtifact: a parameter does not exist or has another shape.
        UsageError: a parameter is shared by several layers.
    """
    values = weights or Weights(model)
    modules = dict(model.named_modules())
    changes = []
    for name, mine in by_parameter(updates).items():
        layer, _, leaf = name.rpartition(".")
        module = modules.get(layer)
        if module is None or not _has(module, leaf):
            raise InvalidArtifact(
                f"{type(model).__name__} has no parameter {name}.",
                "The adapter is for another model, or for another version of transformers that names its parts "
                "differently.",
            )
        old = module._parameters[leaf]
        if old is not None and len(values.names(old)) > 1:
            raise UsageError(
                f"{' and '.join(values.names(old))} are one tied weight: an update of one would change the other.",
                "Update a weight that belongs to one layer alone.",
            )
        like = module.weight if old is None else old
        kind = dtype or like.dtype
        value = None if old is None else values.of(old).whole().to(kind)
        new = compose(mine, value).to("cpu" if like.device.type == "meta" else like.device, kind)
        if old is None and new.shape != (module.out_features,):
            raise InvalidArtifact(
                f"The update gives {name} the shape {tuple(new.shape)}, the layer has {module.out_features} outputs.",
                "The adapter is for another model.",
            )
        if not torch.isfinite(new).all():
            raise InvalidArtifact(
                f"The update of {name} overflows {str(kind).removeprefix('torch.')}.",
                "Load the model in float32.",
            )
        changes.append(Change(layer, module, leaf, old, new))
    return changes


def _has(module: nn.Module, leaf: str) -> bool:
    """Whether ``leaf`` is a parameter, or the bias that a linear layer may be given."""
    if leaf not in module._parameters:
        return False
    return module._parameters[leaf] is not None or (leaf == "bias" and isinstance(module, nn.Linear))


@contextmanager
def applied_updates(
    model: nn.Module,
    updates: Sequence[WeightUpdate],
    weights: Weights | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[None]:
    """Run ``model`` with new weights until the block ends; then the very same old tensors are back.

    Several updates of one parameter act in order. A bias that a linear layer lacks exists inside the block only.
    Cached image features do not follow: see :func:`touches_vision`.

    Raises:
        InvalidArtifact: a parameter does not exist or has another shape; nothing was changed.
        UsageError: a parameter is shared by several layers; nothing was changed.
    """
    changes = find_changes(model, updates, weights, dtype)
    with ExitStack() as stack:
        for change in changes:
            hold(stack, change.module, {change.leaf: change.new})
            stack.callback(setattr, change.module, change.leaf, change.old)
            requires_grad = change.old is not None and change.old.requires_grad
            setattr(change.module, change.leaf, nn.Parameter(change.new, requires_grad=requires_grad))
        yield


@contextmanager
def updated(vlm: Running, updates: Sequence[WeightUpdate]) -> Iterator[None]:
    """:func:`applied_updates` on a VLM, whose cached image features are forgotten where they change."""
    stale = touches_vision(vlm, updates)
    try:
        with applied_updates(vlm.model, updates, vlm.weights, vlm.dtype):
            if stale:
                vlm.features.clear()
            yield
    finally:
        if stale:
            vlm.features.clear()


def touches_vision(vlm: Running, updates: Sequence[WeightUpdate]) -> bool:
    """Whether some update may change image features: it lies neither in the decoder nor in the head."""
    inside = (vlm.model.get_decoder(), vlm.parts.head)
    prefixes = tuple(f"{name}." for name, module in vlm.model.named_modules() if any(module is one for one in inside))
    return any(not update.parameter.startswith(prefixes) for update in updates)


def save_updated(vlm: Running, updates: Sequence[WeightUpdate], folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write a complete checkpoint with new weights that plain transformers loads; it appears whole or not at all.

    New biases need a flag of the text configuration, which gives a bias to further layers too: theirs are zero.

    Raises:
        UsageError: ``folder`` is taken, a weight is tied, or the architecture cannot hold a new bias.
        InvalidArtifact: a parameter does not exist or has another shape.
    """
    changes = find_changes(vlm.model, updates, vlm.weights)
    added = {f"{change.layer}.{change.leaf}" for change in changes if change.old is None}
    skeleton = _skeleton(vlm.model, added)
    held = vlm.model.state_dict(keep_vars=True)
    state = {name: _value(vlm, tensor) for name, tensor in held.items()}
    state |= {f"{change.layer}.{change.leaf}": change.new for change in changes}
    for name, tensor in skeleton.state_dict().items():
        if name not in state:
            state[name] = torch.zeros(tensor.shape, dtype=vlm.model.dtype)
    skeleton.load_state_dict(state, assign=True)
    skeleton.tie_weights()
    skeleton.config.dtype = vlm.model.dtype
    skeleton.generation_config = vlm.model.generation_config
    require_free(Path(folder), overwrite=overwrite, inputs=[vlm.path])
    with atomic_folder(Path(folder), overwrite=overwrite) as work:
        mark_made(work)
        skeleton.save_pretrained(work)
        for name, data in configuration(vlm.path).items():
            if name not in _MADE_BY_SAVING:
                (work / name).write_bytes(data)
    return Path(folder)


def _value(vlm: Running, tensor: Tensor) -> Tensor:
    """A parameter's or a buffer's value, from wherever it lies, in the type the model has it in."""
    return vlm.weights.of(tensor).whole().to(tensor.dtype) if tensor.device.type == "meta" else tensor.detach()


def _skeleton(model: nn.Module, added: set[str]) -> nn.Module:
    """A model without storage whose configuration gives it ``added`` biases, and otherwise the same parameters."""
    config = copy.deepcopy(model.config)
    wanted, built = set(model.state_dict()) | added, _empty(model, config)
    text = config.get_text_config()
    for flag in _BIAS_FLAGS:
        if wanted <= set(built.state_dict()):
            break
        if getattr(text, flag, None) is False:
            setattr(text, flag, True)
            trial = _empty(model, config)
            if (set(trial.state_dict()) - set(built.state_dict())) & added:
                built = trial
            else:  # a flag for other layers
                setattr(text, flag, False)
    found = set(built.state_dict())
    if missing := sorted(wanted - found) or sorted(name for name in found - wanted if not name.endswith(".bias")):
        raise UsageError(
            f"The configuration of {type(model).__name__} ({text.model_type}) has no way to hold {missing[0]}.",
            "Export with --mode fold, or write a PEFT adapter, which can hold it.",
        )
    return built


def _empty(model: nn.Module, config: object) -> nn.Module:
    with torch.device("meta"):
        return type(model)(copy.deepcopy(config))
