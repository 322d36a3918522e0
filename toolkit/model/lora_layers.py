"""Trained LoRA layers of PEFT as weight updates, in the terms of :mod:`.lora`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."  # of names in a PeftModel


def updates_from_peft(model: PeftModel) -> tuple[WeightUpdate, ...]:
    """The active LoRA layers of ``model`` as low-rank updates of its base model, scaling included.

    Raises:
        UsageError: something is trained that a low-rank update cannot say, or is merged into the base already.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    updates: list[WeightUpdate] = []
    if any(config.bias != "none" for config in model.peft_config.values()):
        raise UsageError("The base model's own biases were trained (LoraConfig.bias).", "Train with bias='none'.")
    for name, module in model.named_modules():
        layer = name.removeprefix(PREFIX)
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise UsageError(f"{layer} was trained as a whole, not as LoRA.", "Leave it out of modules_to_save.")
        if not isinstance(module, BaseTunerLayer):
            continue
        # Other kinds of layers derive from nn.Linear's; variants such as DoRA are not low-rank.
        if type(module) is not Linear or module.lora_variant or module.fan_in_fan_out:
            raise UsageError(
                f"{layer} ({type(module).__name__}) is not plain LoRA on a linear layer.", "Train plain LoRA."
            )
        if module.merged:
            raise UsageError(f"The LoRA of {layer} is merged into the base.", "Unmerge it first.")
        updates += _of_layer(layer, module)
    if not updates:
        raise UsageError("The model has no active LoRA layer.", "Pass a PeftModel with LoRA.")
    return tuple(updates)


def _of_layer(layer: str, module: Any) -> list[WeightUpdate]:
    updates, shift = [], None
    for adapter in module.active_adapters:
        if adapter not in module.lora_A:
            continue
        a, b, scaling = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
        tensors = {"up": scaling * b.weight.detach().float().cpu(), "down": a.weight.detach().float().cpu().clone()}
        updates.append(WeightUpdate(f"{layer}.weight", tensors))
        if b.bias is not None:
            more = scaling * b.bias.detach().float().cpu()
            shift = more if shift is None else shift + more
    if shift is not None:
        old = module.get_base_layer().bias
        value = shift if old is None else old.detach().float().cpu() + shift
        updates.append(WeightUpdate(f"{layer}.bias", {"value": value}))
    return updates
