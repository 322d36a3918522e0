"""How a model is loaded, written once for Python, the command line and ``--config``. No torch is imported here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean
from ...adapters.settings import Settings, listed, require_choice, setting, spell

AUTO: Final = "auto"
DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
DEVICES: Final = (AUTO, "cpu", "cuda", "cuda:N", "mps")
DEVICE_MAPS: Final = (AUTO, "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
_PLACE = re.compile(r"cpu|\d{1,3}")
_AMOUNT = re.compile(r"\d+(\.\d+)?\s*([KMG]i?B)?", re.IGNORECASE)


def _device(given: Any) -> str:
    text = str(given)
    if not _DEVICE.fullmatch(text):
        raise UsageError(
            f"{_spelled('device')} cannot be {text!r}.",
            f"It is {listed(DEVICES)}. {did_you_mean(text, DEVICES)}".strip(),
        )
    return text


def _dtype(given: Any) -> str:
    text = str(given).removeprefix("torch.")
    require_choice(_spelled("dtype"), text, (AUTO, *DTYPES))
    return text


def _device_map(given: Any) -> Any:
    if given is None or isinstance(given, Mapping):
        return given
    require_choice(_spelled("device_map"), str(given), DEVICE_MAPS)
    return str(given)


def _max_memory(given: Any) -> Any:
    """A mapping, or its spelling ``0=20GiB,cpu=30GiB``."""
    if given is None:
        return None
    parts = given if isinstance(given, Mapping) else dict(_pair(part) for part in str(given).split(","))
    for place, amount in parts.items():
        if not _PLACE.fullmatch(str(place)) or not _AMOUNT.fullmatch(str(amount).strip()):
            raise _no_amount(f"{place}={amount}")
    return {str(place): str(amount).strip() for place, amount in parts.items()}


def _pair(part: str) -> tuple[str, str]:
    place, sign, amount = part.partition("=")
    if not sign:
        raise _no_amount(part)
    return place.strip(), amount.strip()


def _no_amount(part: str) -> UsageError:
    return UsageError(
        f"{_spelled('max_memory')} cannot be {part!r}.",
        "Name devices with what they may hold, such as 0=20GiB,cpu=30GiB; what is left lies on disk.",
    )


def _batch_size(given: Any) -> str:
    text = str(given)
    if text != AUTO and not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UsageError(f"{_spelled('batch_size')} cannot be {text!r}.", "It is auto or a number of rows above 0.")
    return text


def _spelled(name: str) -> str:
    return spell(LoadOptions, name)


class PlaceOptions(Settings):
    """Where a checkpoint's weights go, and in which type."""

    device: Annotated[str, BeforeValidator(_device)] = setting(
        AUTO,
        "Where the model runs: cpu, cuda, cuda:N, mps, or auto, the best there is.",
        acts={"device_map": None},
    )
    dtype: Annotated[str, BeforeValidator(_dtype)] = setting(
        AUTO, "Type of the model's floats: float32, bfloat16, float16, float64, or auto, the checkpoint's own."
    )
    device_map: Annotated[str | dict[str, Any] | None, BeforeValidator(_device_map)] = setting(
        None, "Spread the model over devices, memory and disk: auto, balanced, balanced_low_0 or sequential."
    )
    max_memory: Annotated[str | dict[str, str] | None, BeforeValidator(_max_memory)] = setting(
        None,
        "What each device may hold of a spread model, such as 0=20GiB,cpu=30GiB; the rest lies on disk.",
        acts={"device_map": DEVICE_MAPS},
    )

    def loading(self) -> dict[str, Any]:
        """The keywords of :meth:`VLM.from_pretrained`, as far as they were given."""
        return {name: getattr(self, name) for name in LoadOptions.model_fields if name in self.model_fields_set}

    def require_model(self, used: bool, instead: str) -> None:
        """Refuse what was given where no model is loaded.

        Args:
            used: whether one is.
            instead: what is used in its place, for the error.

        Raises:
            UsageError: naming the first option that was given.
        """
        for name in () if used else PlaceOptions.model_fields:
            if name in self.model_fields_set:
                raise UsageError(
                    f"{spell(type(self), name)} does nothing with {instead}.", "Leave it out, or name a model."
                )


class LoadOptions(PlaceOptions):
    """And how many rows run through them at once."""

    batch_size: Annotated[str, BeforeValidator(_batch_size)] = setting(
        AUTO, "Rows that run through the model at once, or auto: as many as are usual, and fewer if memory is short."
    )

    @property
    def rows(self) -> int | None:
        """The batch size that was asked for; None for ``auto``."""
        return None if self.batch_size == AUTO else int(self.batch_size)
