"""Reading a checkpoint folder into a transformers model, whole on one device or spread over several and the disk."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ...adapters.errors import SafetykitError, UsageError
from .batching import is_out_of_memory
from .completeness import CHECKED, require_complete
from .placement import Placement
from .pretrained import model_of
from .reasons import reason_of
from .weights import Weights, stored_weights

VLM_KIND = "AutoModelForImageTextToText"


def load_model(folder: Path, placement: Placement, kind: str = VLM_KIND) -> tuple[Any, Weights]:
    """The model of a checkpoint folder, and the values of its parameters, wherever they lie.

    On a CPU, weights in the checkpoint's own type stay in its files until they are read.

    Args:
        kind: which of transformers' automatic classes reads it.

    Raises:
        UsageError: the folder holds no such model, or the device's memory does not hold it.
        InvalidArtifact: tensors of the model are missing, or have other shapes.
    """
    import transformers

    offload = TemporaryDirectory(prefix="safetykit-offload-")
    try:
        with readable(folder):
            keywords = placement.keywords(Path(offload.name))
            model, said = model_of(getattr(transformers, kind), folder, **CHECKED, **keywords)
        require_complete(folder, said)
    except BaseException:
        offload.cleanup()
        raise
    if spread(model) and any(Path(offload.name).iterdir()):
        weakref.finalize(model, offload.cleanup)
    else:
        offload.cleanup()
    away = any(parameter.device.type == "meta" for parameter in model.parameters())
    return model, Weights(model, stored_weights(model, folder) if away else None, come_and_go=away)


def spread(model: nn.Module) -> dict[str, Any]:
    """Which device holds which part of a model that several hold, or the disk; empty for one that one holds."""
    found = dict(getattr(model, "hf_device_map", None) or {})
    return found if len({str(place) for place in found.values()}) > 1 or "disk" in found.values() else {}


def device_of(model: Any) -> torch.device:
    """Where the inputs of a model go; ``meta`` for one whose weights were not loaded."""
    places = list(spread(model).values())
    if not places:
        device: torch.device = model.device
        return device
    return torch.device(next((place for place in places if place not in ("cpu", "disk")), "cpu"))


def folder_of(model: nn.Module) -> Path | None:
    """The local folder that transformers loaded a model from, if it still is one."""
    name = getattr(model, "name_or_path", "")
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Say in two sentences what transformers says of a folder that it cannot load.

    Raises:
        UsageError: it raised an error within the block.
    """
    try:
        yield
    except SafetykitError:
        raise
    except Exception as error:  # of a file that is not as it should be, it may raise anything
        if is_out_of_memory(error):
            raise UsageError(
                f"The device's memory does not hold {folder}.",
                "Spread it with --device-map auto, or load it in a smaller --dtype.",
            ) from None
        raise UsageError(
            f"{folder} cannot be loaded as a vision-language model: {reason_of(error)}",
            "It needs an image-text-to-text architecture of transformers and safetensors weights.",
        ) from error
