"""Values of a model's parameters, wherever they lie: in memory, or in the files of a checkpoint that was not loaded.

:func:`empty_model` builds a model without values (parameters on the device ``meta``, buffers as they are), and
:class:`Weights` reads them row by row. Which tensor of a file belongs to which parameter, under names of older versions
and through conversions such as merged experts, is what transformers' own tables say.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...adapters.artifact.checkpoint import checkpoint_tensors
from ...adapters.artifact.tensors import PIECE, StoredTensor
from ...adapters.errors import InvalidArtifact
from .completeness import missing_weights, require_present, require_shapes
from .pretrained import config_of, generation_config_of


class Weight(Protocol):
    """Values that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) along the first axis, as they are stored."""
        ...

    def whole(self) -> Tensor:
        """All of it."""
        ...


class HeldWeight:
    """A weight in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.shape = tuple(tensor.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].cpu()

    def whole(self) -> Tensor:
        return self.tensor.cpu()


class ConvertedWeight:
    """One result of a conversion of stored tensors; it is carried out whole, and the last result is kept."""

    def __init__(self, convert: Any, name: str, shape: tuple[int, ...]) -> None:
        self.convert, self.name, self.shape = convert, name, shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.whole()[start:stop]

    def whole(self) -> Tensor:
        return _converted(self.convert)[self.name]


@functools.lru_cache(maxsize=1)
def _converted(convert: Any) -> dict[str, Tensor]:
    made: dict[str, Tensor] = convert()
    return made


class Weights:
    """The values of a model's parameters.

    Attributes:
        model: whose they are.
    """

    def __init__(
        self, model: nn.Module, stored: Mapping[str, Weight] | None = None, *, come_and_go: bool = False
    ) -> None:
        """Read parameters that are in memory there, and those on the device ``meta`` from ``stored``, by name.

        Args:
            come_and_go: parameters are other objects after each run of the model.
        """
        self.model, self.stored, self._come_and_go = model, stored or {}, come_and_go
        self._names = _names(model)

    @property
    def dtype(self) -> str | None:
        """The type that most stored floats have; None if nothing is stored."""
        counts: Counter[str] = Counter()
        for weight in self.stored.values():
            kind = getattr(weight, "dtype", None)
            if kind is not None and kind.is_floating_point:
                counts[str(kind).removeprefix("torch.")] += math.prod(weight.shape)
        return counts.most_common(1)[0][0] if counts else None

    def names(self, parameter: Tensor) -> list[str]:
        """The names of one of the model's parameters: several, if it is tied."""
        known = self._names.get(id(parameter))
        if known is not None and not self._come_and_go and _held(self.model, known[0]) is parameter:
            return known
        found = _names(self.model)[id(parameter)]
        tied: dict[str, str] = getattr(self.model, "all_tied_weights_keys", None) or {}
        return [*found, *(one for pair in tied.items() if set(pair) & set(found) for one in pair if one not in found)]

    def of(self, parameter: Tensor) -> Weight:
        """The value of one of the model's parameters.

        Raises:
            InvalidArtifact: the checkpoint does not have it.
        """
        if parameter.device.type != "meta":
            return HeldWeight(parameter)
        names = self.names(parameter)
        found = next((self.stored[name] for name in names if name in self.stored), None)
        if found is None:
            raise InvalidArtifact(
                f"The checkpoint has no weights for {' or '.join(names)}.", "Get it again, or save the model again."
            )
        return found


def _held(model: nn.Module, name: str) -> Tensor | None:
    place, _, leaf = name.rpartition(".")
    return model.get_submodule(place)._parameters[leaf]


def _names(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, of which tied ones have several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def empty_model(folder: Path) -> tuple[Any, Weights]:
    """The model of a checkpoint folder without its values, and these.

    Raises:
        InvalidArtifact: a file is damaged, or a tensor is missing or has another shape than its parameter.
        ValueError, OSError: as transformers raises them: the folder holds no such model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    config = config_of(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.tie_weights()
    if (generation := generation_config_of(folder)) is not None:
        model.generation_config = generation
    stored = stored_weights(model, folder)
    require_present(folder, missing_weights(model, stored))
    _load_buffers(model, stored)
    _untie(model, stored)
    return model.eval(), Weights(model, stored)


def stored_weights(model: Any, folder: Path) -> dict[str, Weight]:
    """What a checkpoint folder holds of a model's parameters and buffers, by their names in the model.

    Raises:
        InvalidArtifact: a file is damaged, or a tensor has another shape than its parameter.
    """
    assigned = _assigned(model, checkpoint_tensors(folder))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = ((name, weight.shape, wanted.get(name, weight.shape)) for name, weight in assigned.items())
    require_shapes(folder, [one for one in shapes if one[1] != one[2]])
    return assigned


def _assigned(model: Any, files: Mapping[str, StoredTensor]) -> dict[str, Weight]:
    """What belongs to each parameter and buffer, by its name in the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    wanted = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    assigned: dict[str, Weight] = {}
    collected: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
        if name in wanted and pattern is not None:
            collected.setdefault(name, (by_pattern[pattern], []))[1].append((key, pattern))
        elif name in wanted:
            assigned[name] = files[key]
    for first, (converter, sources) in collected.items():
        convert = functools.partial(_convert, model, converter, first, sources, files)
        for name, made in convert(empty=True).items():
            assigned[name] = ConvertedWeight(convert, name, tuple(made.shape))
    return assigned


def _convert(
    model: Any,
    converter: Any,
    first: str,
    sources: list[tuple[str, str]],
    files: Mapping[str, StoredTensor],
    *,
    empty: bool = False,
) -> dict[str, Tensor]:
    """Carry out a conversion; with ``empty`` on tensors without values, which shows what it makes."""
    converter = copy.deepcopy(converter)
    for key, pattern in sources:
        stored = files[key]
        read = (
            functools.partial(torch.empty, stored.shape, dtype=stored.dtype, device="meta") if empty else stored.whole
        )
        converter.add_tensor(first, key, pattern, read)
    made = converter.convert(first, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def _load_buffers(model: nn.Module, stored: Mapping[str, Weight]) -> None:
    """Give buffers that the checkpoint holds their values; they are small."""
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.copy_(stored[name].whole())


def _untie(model: nn.Module, stored: Mapping[str, Weight]) -> None:
    """Part parameters that the configuration ties and the checkpoint has apart, with other values."""
    for names in _names(model).values():
        first, *others = [name for name in names if name in stored] or [""]
        for name in others:
            if not _equal(stored[first], stored[name]):
                layer, _, leaf = name.rpartition(".")
                old = model.get_parameter(name)
                setattr(model.get_submodule(layer), leaf, nn.Parameter(torch.empty_like(old), requires_grad=False))


def _equal(one: Weight, other: Weight) -> bool:
    return one.shape == other.shape and all(
        torch.equal(mine.float(), theirs.float()) for mine, theirs in zip(chunks(one), chunks(other), strict=True)
    )


def chunks(weight: Weight, limit: int = PIECE) -> Iterator[Tensor]:
    """A weight in pieces of whole rows, each of about ``limit`` bytes in float32."""
    if not weight.shape:
        yield weight.whole()
        return
    step = max(1, limit // (4 * max(1, math.prod(weight.shape[1:]))))
    for start in range(0, weight.shape[0], step):
        yield weight.rows(start, min(start + step, weight.shape[0]))
