"""Which device a model goes to, which type its floats have, and what becomes of it when one device cannot hold it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...adapters.artifact.checkpoint import weight_files
from ...adapters.errors import UsageError
from ..distributed.job import launched, local_rank
from .memory import accelerators
from .options import AUTO, LoadOptions

D = TypeVar("D")

_SPARE = 0.85  # share of a device's free memory that weights may take


@dataclass(frozen=True)
class Placement:
    """Where a checkpoint's weights go, and as what.

    Attributes:
        device: the one that holds all of it; with ``device_map``, None.
        dtype: of its floats; None for the checkpoint's own.
        device_map: how it is spread, as accelerate takes it.
        max_memory: what each device may hold then.
    """

    device: torch.device | None
    dtype: torch.dtype | None
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[int | str, str] | None = None

    @classmethod
    def of(cls, options: LoadOptions, folder: Path) -> Placement:
        """What the options come to on this machine, for the checkpoint in ``folder``.

        Raises:
            UsageError: there is no such device, or it does not compute in this type.
        """
        dtype = None if options.dtype == AUTO else getattr(torch, options.dtype)
        spread, limits = options.device_map, options.max_memory
        if spread is None:
            device = _device(options.device, _size(folder, dtype))
            if device is not None:
                return cls(device, _supported(dtype, device, folder))
            spread = AUTO
        if launched() > 1 and accelerators():
            raise UsageError(
                f"A model spread over this machine's devices leaves none for the other {launched() - 1} processes.",
                "Load it in a smaller --dtype, or run one process with --device-map auto.",
            )
        assert not isinstance(limits, str)
        places = {int(place) if place.isdigit() else place: amount for place, amount in (limits or {}).items()}
        return cls(None, dtype, spread, places or None)

    def keywords(self, offload: Path) -> dict[str, Any]:
        """For transformers' ``from_pretrained``.

        Args:
            offload: folder for weights that cannot stay in the checkpoint's own files.
        """
        found: dict[str, Any] = {"dtype": self.dtype or AUTO}
        if self.device_map is not None:
            found |= {"device_map": self.device_map, "max_memory": self.max_memory, "offload_folder": str(offload)}
        elif self.device is not None and self.device.type != "cpu":
            found |= {"device_map": {"": self.device}}  # straight to the device, not by way of this machine's memory
        return found


def _device(asked: str, size: int) -> torch.device | None:
    """The device that was asked for; of ``auto``, None stands for all of them together.

    In a job each process of a machine has its own.

    Raises:
        UsageError: there is no such device.
    """
    found = accelerators()
    if asked == AUTO:
        if not found:
            return torch.device("cpu")
        best, free = max([_own(found)] if launched() > 1 else found, key=lambda item: item[1])
        return best if size <= _SPARE * free else None
    if asked == "cpu":
        return torch.device("cpu")
    wanted = torch.device(asked)
    same = [device for device, _ in found if device.type == wanted.type]
    if not same or (wanted.index is not None and wanted not in same):
        there = ["cpu", *(str(device) for device, _ in found)]
        raise UsageError(f"There is no device {asked} here.", f"There is {' and '.join(there)}; auto takes the best.")
    return wanted if wanted.index is not None or wanted.type == "mps" else _own(same)


def _own(devices: list[D]) -> D:
    """Of the devices of one machine, that of this process; the first without others."""
    return devices[local_rank() % len(devices)]


def _supported(dtype: torch.dtype | None, device: torch.device, folder: Path) -> torch.dtype | None:
    """The type as it can be computed with there: checkpoints in bfloat16 run in float32 where it is not known.

    Raises:
        UsageError: bfloat16 was asked for.
    """
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        return dtype
    if dtype == torch.bfloat16:
        raise UsageError(f"{device} does not compute in bfloat16.", "Load in float16 or float32.")
    return torch.float32 if dtype is None and _itemsize(folder) == 2 and own_dtype(folder) == "bfloat16" else dtype


def _size(folder: Path, dtype: torch.dtype | None) -> int:
    """Bytes of the checkpoint's weights once they are loaded."""
    stored = sum(path.stat().st_size for path in weight_files(folder))
    return stored if dtype is None else stored * dtype.itemsize // _itemsize(folder)


def _itemsize(folder: Path) -> int:
    name = own_dtype(folder)
    return int(getattr(torch, name, torch.float32).itemsize)


def own_dtype(folder: Path) -> str:
    """The type that the configuration states."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return "float32"  # loading says what is wrong with it
    if not isinstance(config, dict):
        return "float32"
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    said = next((one[name] for one in places for name in ("dtype", "torch_dtype") if one.get(name)), None)
    return said if isinstance(said, str) else "float32"
