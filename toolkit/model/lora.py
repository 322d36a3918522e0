"""Weight updates as PEFT LoRA adapters; for the way back see :mod:`.lora_layers`.

LoRA adds s·B(A x) to the output of a linear layer; a low-rank weight update adds up·(down·x). With s = 1 (alpha = rank)
B is ``up`` and A is ``down``. What an update adds to the bias becomes the bias of B, which PEFT calls ``lora_bias``; it
can load such an adapter onto layers without a bias, but not merge it into them.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import atomic_folder
from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError
from .lora_layers import PREFIX
from .updates import Change, find_changes

if TYPE_CHECKING:
    from .vlm import VLM

_CARD, _CONFIG = "README.md", "adapter_config.json"
_NAME = "default"  # what PEFT calls an adapter that was given no name


@dataclass(frozen=True)
class _LowRank:
    """What is added to one linear layer's output: up·(down·x) + shift."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank inputs"]
    shift: Float[Tensor, " out"] | None


def write_peft(vlm: VLM, folded: Adapter, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write ``folded`` as a folder that ``peft.PeftModel.from_pretrained(model, folder)`` loads.

    Args:
        folded: an adapter of weight updates alone, such as :func:`safetykit.toolkit.model.folding.fold` gives.

    Raises:
        UsageError: it holds interventions or a branch, an update is not low-rank or not of a linear layer, a weight is
            tied, or ``folder`` is taken.
        InvalidArtifact: a parameter does not exist or has another shape.
    """
    from peft import LoraConfig, get_peft_model

    if folded.interventions or folded.branch or not folded.updates:
        raise UsageError(
            "Only weight updates can be written as a PEFT adapter, and this adapter holds "
            f"{'interventions or a branch' if folded.updates or not folded.empty else 'none'}.",
            "Fold it first; what cannot be folded is exported with --mode bake.",
        )
    parts = _low_rank(find_changes(vlm.model, folded.updates, vlm.weights), folded.updates)
    ranks = {name: part.up.shape[1] for name, part in parts.items()}
    patterns = {f"^{name}".replace(".", r"\."): rank for name, rank in ranks.items()}
    largest = max(ranks.values())
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=list(parts),
        init_lora_weights=False,
        lora_bias=any(part.shift is not None for part in parts.values()),
        inference_mode=True,
    )
    with torch.device("meta"):  # LoRA layers are built on a model without storage, so that this one stays as it is
        skeleton = type(vlm.model)(copy.deepcopy(vlm.model.config))
    with warnings.catch_warnings(), atomic_folder(Path(folder), overwrite=overwrite) as work:
        warnings.simplefilter("ignore")  # of biases: that they cannot be merged, and that they are one-dimensional
        model = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
        for name, part in parts.items():
            _fill(model.get_submodule(PREFIX + name), part, config.lora_bias)
        model.save_pretrained(work, save_embedding_layers=False)
        (work / _CARD).unlink(missing_ok=True)  # PEFT's form, with nothing filled in
        written = json.loads((work / _CONFIG).read_bytes())
        written["target_modules"].sort()  # a set in PEFT, so in another order each time
        written["base_model_name_or_path"] = None  # a path on this machine
        write_atomic(work / _CONFIG, canonical_json(written))
    return Path(folder)


def _low_rank(changes: Sequence[Change], updates: Sequence[WeightUpdate]) -> dict[str, _LowRank]:
    """What is added to each layer, by its name; a layer of which the bias alone changes has rank 1."""
    parts: dict[str, _LowRank] = {}
    layers = {change.layer: change.module for change in changes}
    by_leaf = {(change.layer, change.leaf): change for change in changes}
    for layer, module in layers.items():
        mine = [update for update in updates if update.parameter == f"{layer}.weight"]
        if not isinstance(module, nn.Linear) or not all(update.low_rank for update in mine):
            what = "a new value, not a low-rank change" if isinstance(module, nn.Linear) else "no linear layer's"
            raise UsageError(
                f"The update of {layer} is {what}, so it is no LoRA.", "Save the updated checkpoint, or export it."
            )
        ups = [update.tensors["up"].float() for update in mine] or [torch.zeros(module.out_features, 1)]
        downs = [update.tensors["down"].float() for update in mine] or [torch.zeros(1, module.in_features)]
        shift = None
        if bias := by_leaf.get((layer, "bias")):
            shift = bias.new.float().cpu() - (0 if bias.old is None else bias.old.detach().float().cpu())
        parts[layer] = _LowRank(torch.cat(ups, dim=1), torch.cat(downs), shift)
    return parts


def _fill(layer: nn.Module, part: _LowRank, with_bias: bool) -> None:
    a, b = layer.lora_A[_NAME], layer.lora_B[_NAME]
    a.weight = nn.Parameter(part.down.contiguous(), requires_grad=False)
    b.weight = nn.Parameter(part.up.contiguous(), requires_grad=False)
    if with_bias:
        shift = torch.zeros(len(part.up)) if part.shift is None else part.shift
        b.bias = nn.Parameter(shift, requires_grad=False)
