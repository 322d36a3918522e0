"""What is trained: the projector as a whole, or low-rank changes (peft) of the projector and of the decoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError
from ...adapters.tga.settings import TGA
from ..model.lora_layers import updates_from_peft

if TYPE_CHECKING:
    from peft import PeftModel

    from ..model.vlm import VLM


class Trained:
    """The parameters of a model that are trained; everything else is frozen.

    Attributes:
        parameters: by name; their values are what a checkpoint holds.
        peft: the model with its LoRA layers, or None when weights themselves are trained.
    """

    def __init__(self, vlm: VLM, named: dict[str, nn.Parameter], peft: PeftModel | None) -> None:
        self._vlm, self.parameters, self.peft = vlm, named, peft

    def base(self) -> AbstractContextManager[None]:
        """Context in which the decoder is that of the base: what text means is not trained."""
        return self.peft.disable_adapter() if self.peft is not None else nullcontext()

    def updates(self) -> tuple[WeightUpdate, ...]:
        """What was trained, as updates of the base."""
        if self.peft is not None:
            return updates_from_peft(self.peft)
        return tuple(
            WeightUpdate(name, {"value": parameter.detach().float().cpu().clone()})
            for name, parameter in self.parameters.items()
        )


@contextmanager
def trained(vlm: VLM, settings: TGA) -> Iterator[Trained]:
    """Make the targets of ``settings`` trainable; on every way out the model is what it was, bit by bit.

    Raises:
        UsageError: a target has no linear layer.
    """
    was = {name: parameter.requires_grad for name, parameter in vlm.model.named_parameters()}
    vlm.model.requires_grad_(False)
    try:
        if settings.variant == "projector":
            with _whole_projector(vlm) as found:
                yield found
        else:
            with _low_rank(vlm, settings) as found:
                yield found
    finally:
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(was[name])
            parameter.grad = None
        vlm.features.clear()


@contextmanager
def _whole_projector(vlm: VLM) -> Iterator[Trained]:
    inside = {id(parameter) for parameter in vlm.parts.projector.parameters()}
    named = {name: parameter for name, parameter in vlm.model.named_parameters() if id(parameter) in inside}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    vlm.parts.projector.requires_grad_(True)
    try:
        yield Trained(vlm, named, None)
    finally:
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(before[name])


@contextmanager
def _low_rank(vlm: VLM, settings: TGA) -> Iterator[Trained]:
    from peft import LoraConfig, get_peft_model

    places = [vlm.parts.projector] if settings.variant == "low-rank" else [vlm.parts.projector, *vlm.parts.layers]
    inside = {id(module) for place in places for module in place.modules() if isinstance(module, nn.Linear)}
    targets = [name for name, module in vlm.model.named_modules() if id(module) in inside]
    if not targets:
        raise UsageError("The projector has no linear layer.", "Train it as a whole: --variant projector.")
    # alpha = rank: the product of up and down is the change itself.
    config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=targets, bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        model = get_peft_model(vlm.model, config)
    try:
        yield Trained(vlm, {name: item for name, item in model.named_parameters() if item.requires_grad}, model)
    finally:
        model.unload()
        if hasattr(vlm.model, "peft_config"):
            del vlm.model.peft_config
