"""Folders of PEFT LoRA adapters as checkpoints: merged into their base once, as plain files.

W ← W + s·B·A for each adapted linear layer, computed in float32 and stored in the type of W, as PEFT's
``merge_and_unload`` does. The base's files are copied and the bytes of the changed weights written over, one after
another. What is merged lies in a cache of its own, under a digest of the adapter and of the base's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...adapters.artifact.checkpoint import INDEX, weight_files
from ...adapters.artifact.checkpoint import WEIGHTS as SINGLE
from ...adapters.artifact.configuration import configuration
from ...adapters.artifact.files import CONFIGURATION_FILES, read_inside, sha256_file
from ...adapters.artifact.hub import located, name_of, plain_file
from ...adapters.artifact.output import atomic_folder
from ...adapters.artifact.tensors import StoredTensor
from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import InvalidArtifact, SafetykitError, UsageError
from ..data.sources import model_path
from .cache import cache_of, made_once
from .lora_layers import updates_from_peft
from .weights import Weights, empty_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LIMIT = 2**24  # bytes of the configuration
_ITSELF = "Merge it with PEFT's own merge_and_unload, save model and processor, and pass that folder."


def checkpoint_path(text: Path | str, base: Path | str | None = None) -> Path:
    """The folder of plain weights that ``text`` names; a PEFT folder is merged into its base first.

    Args:
        text: as :func:`~safetykit.toolkit.data.sources.model_path` takes it, or a folder with ``adapter_config.json``,
            alone or beside the weights that it belongs to.
        base: checkpoint that an adapter alone belongs to; by default the one that its configuration names.

    Raises:
        UsageError: the base is not here, ``base`` could not act, or the adapter is no plain LoRA.
        InvalidArtifact: a file is missing or damaged.
    """
    folder = model_path(text)
    if not (folder / CONFIG).is_file():
        if base is not None:
            raise UsageError(f"--base does nothing: {text} is no PEFT adapter.", "Leave it out.")
        return folder
    if not (folder / "config.json").is_file():
        below = _base(folder, base)
    elif base is None:
        below = folder
    else:
        raise UsageError(f"--base does nothing: {text} holds the weights of its base itself.", "Leave it out.")
    if not os.path.lexists(folder / WEIGHTS):
        raise InvalidArtifact(f"{folder} holds {CONFIG} and no {WEIGHTS}.", "Save the adapter with safetensors.")
    plain_file(folder, WEIGHTS)
    target = cache_of("merged") / _digest(folder, below) / name_of(folder)
    return made_once(target, lambda: merge(folder, below, target))


def merge(folder: Path, base: Path, out: Path) -> None:
    """Write ``base`` with the LoRA adapter in ``folder`` merged as a checkpoint.

    Raises:
        UsageError: the adapter is no plain LoRA on linear layers of this base.
        InvalidArtifact: a file is missing or damaged.
    """
    changes = _changes(folder, base)
    with atomic_folder(out) as work:
        for name, data in {**configuration(base), **configuration(folder)}.items():
            (work / name).write_bytes(data)
        for path in _weight_files(base):
            shutil.copyfile(path, work / path.name)
        for stored, update in changes:
            _overwrite(work / stored.path.name, stored, update)


def _base(folder: Path, given: Path | str | None) -> Path:
    if given is not None:
        below = model_path(given)
        if (below / CONFIG).is_file():
            raise UsageError(f"The base {given} is a PEFT adapter itself.", "Pass the checkpoint that it belongs to.")
        return below
    named = _config(folder).get("base_model_name_or_path")
    said = f"{folder} holds a PEFT adapter and no model"
    if not isinstance(named, str) or not named:
        raise UsageError(f"{said}, and does not name its base.", "Pass it: --base CHECKPOINT.")
    try:
        below = located(named)
    except UsageError:
        raise UsageError(
            f"{said}; its base {named} is not here.", f"Pass it: --base CHECKPOINT; or fetch it: `hf download {named}`."
        ) from None
    if not below.is_dir():
        raise UsageError(f"{said}; its base {named} is not here.", "Pass it: --base CHECKPOINT.")
    return below


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_inside(folder, CONFIG, _LIMIT))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise InvalidArtifact(f"{folder / CONFIG} is no PEFT configuration.", "Save the adapter again.")


def _changes(folder: Path, base: Path) -> list[tuple[StoredTensor, WeightUpdate]]:
    """What is added to which stored weight."""
    kind = _config(folder).get("peft_type")
    if kind != "LORA":
        raise UsageError(f"{folder} holds a PEFT adapter of type {kind}, not LoRA.", _ITSELF)
    model, weights = empty_model(base)
    if getattr(model.config, "quantization_config", None):
        raise UsageError(f"The base {base} of {folder} is quantised: nothing can be added to it exactly.", _ITSELF)
    shared = _shared(model)
    _without_memory(model)
    try:
        return [(_stored(weights, update, shared), update) for update in updates_from_peft(_adapted(model, folder))]
    except SafetykitError as error:
        raise UsageError(f"{folder} cannot be merged into {base}: {error.message}", _ITSELF) from None


def _adapted(model: Any, folder: Path) -> Any:
    """The empty model with the adapter's layers, which have their values."""
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing, which is an error below
            adapted = get_peft_model(model, LoraConfig.from_pretrained(str(folder)), low_cpu_mem_usage=True)
            values = load_peft_weights(str(folder), device="cpu")
            unknown = set_peft_model_state_dict(adapted, values, low_cpu_mem_usage=True).unexpected_keys
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(reason.rstrip(".") + ".", _ITSELF) from None
    if unknown:
        raise UsageError(f"This base has no place for its {unknown[0]}.", _ITSELF)
    lost = [name for name, value in adapted.named_parameters() if "lora_" in name and value.device.type == "meta"]
    if lost:
        raise UsageError(f"It has no values for {lost[0]}: it was trained on another model.", _ITSELF)
    if any("lora_" in name and name.endswith(".bias") for name, _ in adapted.named_parameters()):
        raise UsageError("Its layers have biases (lora_bias).", _ITSELF)
    return adapted


def _shared(model: nn.Module) -> set[str]:
    """Names of parameters that several layers share."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return {name for found in names.values() if len(found) > 1 for name in found}


def _without_memory(model: nn.Module) -> None:
    """Give parameters on the device ``meta``, where PEFT would leave its layers too, one value for all, in place."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.zeros(()).expand(value.shape), requires_grad=False)


def _stored(weights: Weights, update: WeightUpdate, shared: set[str]) -> StoredTensor:
    """Where the base's files hold the weight that an update changes."""
    found = weights.stored.get(update.parameter)
    if update.parameter in shared or not isinstance(found, StoredTensor):
        raise UsageError(f"{update.parameter} is shared by several layers, or stored in several parts.", _ITSELF)
    if found.shape != (update.tensors["up"].shape[0], update.tensors["down"].shape[1]):
        raise UsageError(f"{update.parameter} has another shape in the base.", _ITSELF)
    return found


def _overwrite(path: Path, stored: StoredTensor, update: WeightUpdate) -> None:
    old, up, down = stored.whole(), update.tensors["up"], update.tensors["down"]
    new = (old.float() + up.float() @ down.float()).to(old.dtype).contiguous()
    with open(path, "r+b") as file:
        file.seek(stored.start)
        file.write(new.view(torch.uint8).numpy().data)


def _weight_files(folder: Path) -> Iterator[Path]:
    files = weight_files(folder)
    yield from files
    if files[0].name != SINGLE:
        yield folder / INDEX


def _digest(folder: Path, base: Path) -> str:
    """Of the adapter's bytes, and of the base's files by path, size and time."""
    found = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        found.update(sha256_file(folder / name).encode())
    others = [path for name in CONFIGURATION_FILES for path in (folder / name, base / name) if path.is_file()]
    for path in [*others, *_weight_files(base)]:
        state = path.stat()
        found.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
