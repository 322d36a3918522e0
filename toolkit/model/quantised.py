"""Checkpoints whose weights were quantised by a package of their own: which it is, and what they are without it.

transformers reads them, where the package is there. For an export their weights are made plain floats again by
transformers' own ``dequantize``. What cannot be made plain is refused by the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...adapters.errors import UsageError
from .completeness import CHECKED, require_complete
from .pretrained import config_of, model_of


@dataclass(frozen=True)
class Kind:
    """A way to quantise that transformers reads.

    Attributes:
        title: how people call it.
        packages: import names of what it needs, with what pip calls them.
        plain: how its weights become plain floats: as they are loaded, afterwards, or not at all here.
    """

    title: str
    packages: Mapping[str, str]
    plain: str | None = None


_GPTQ = {"optimum": "optimum", "gptqmodel": "gptqmodel"}
_BITSANDBYTES = {"bitsandbytes": "bitsandbytes"}
LOADING, LOADED = "loading", "loaded"
KINDS: dict[str, Kind] = {
    "bitsandbytes": Kind("bitsandbytes", _BITSANDBYTES, LOADED),
    "gptq": Kind("GPTQ", _GPTQ),
    "awq": Kind("AWQ", {"gptqmodel": "gptqmodel"}),
    "compressed-tensors": Kind("compressed-tensors", {"compressed_tensors": "compressed-tensors"}, LOADING),
    "fp8": Kind("FP8", {}, LOADING),
    "aqlm": Kind("AQLM", {"aqlm": "aqlm[cpu,gpu]"}),
    "auto-round": Kind("AutoRound", {"auto_round": "auto-round"}),
    "eetq": Kind("EETQ", {"kernels": "kernels"}),
    "fbgemm_fp8": Kind("FBGEMM FP8", {"fbgemm_gpu": "fbgemm-gpu"}),
    "hqq": Kind("HQQ", {"hqq": "hqq"}),
    "quanto": Kind("Quanto", {"optimum.quanto": "optimum-quanto"}),
    "torchao": Kind("torchao", {"torchao": "torchao"}),
}


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint was quantised.

    Attributes:
        method: as its configuration calls it.
        detail: of the format, such as ``nf4`` or ``4 bits``; may be empty.
    """

    method: str
    detail: str

    @property
    def kind(self) -> Kind:
        return KINDS.get(self.method, Kind(self.method, {}))

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind.title, self.detail)))

    def missing(self) -> list[str]:
        """What pip calls the packages that are not installed."""
        return [name for package, name in self.kind.packages.items() if not _installed(package)]


def quantisation_of(config: Any) -> Quantisation | None:
    """How the weights of a checkpoint of this configuration are quantised; None for plain floats."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    given: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method") or ""))
    if not method:  # older bitsandbytes checkpoints say what they load, not with what
        method = "bitsandbytes" if given.get("load_in_4bit") or given.get("load_in_8bit") else "an unknown method"
    if method == "bitsandbytes":
        detail = str(given.get("bnb_4bit_quant_type", "fp4")) if given.get("load_in_4bit") else "int8"
    else:
        bits = given.get("bits") or given.get("w_bit")
        detail = f"{bits} bits" if bits else str(given.get("format") or "")
    return Quantisation(method, detail)


def require_packages(config: Any, called: Path | str) -> None:
    """Refuse a checkpoint whose package is not installed, before anything of it is loaded.

    Raises:
        UsageError: naming the packages and the command that installs them.
    """
    found = quantisation_of(config)
    if found is not None and (names := found.missing()):
        wanted = " ".join(f'"{name}"' if "[" in name else name for name in names)
        raise UsageError(
            f"{called} is quantised by {found}, and {' and '.join(names)} {'is' if len(names) == 1 else 'are'} not "
            "installed.",
            f"pip install {wanted}; or pass the checkpoint before it was quantised.",
        )


def require_plain(config: Any, called: Path | str) -> None:
    """Refuse to export weights that cannot be made plain floats.

    Raises:
        UsageError: with the way out.
    """
    found = quantisation_of(config)
    if found is not None and found.kind.plain is None:
        raise UsageError(
            f"{called} is quantised by {found}, whose weights are not exported here.",
            "Build its decoder with ONNX Runtime GenAI's builder and pass that with --base-onnx; or export the "
            "checkpoint before it was quantised, with --precision int4.",
        )
    require_packages(config, called)


def load_plain(folder: Path) -> Any:
    """The model of a quantised checkpoint with weights of plain float32.

    Raises:
        UsageError: it cannot be had.
    """
    from transformers import AutoModelForImageTextToText

    config = config_of(folder)
    require_plain(config, folder)
    found = quantisation_of(config)
    if found is not None and found.kind.plain == LOADING:
        settings = config.quantization_config
        settings = dict(settings if isinstance(settings, Mapping) else settings.to_dict())
        config.quantization_config = {**settings, "dequantize": True}
    model, said = model_of(AutoModelForImageTextToText, folder, config=config, dtype=torch.float32, **CHECKED)
    require_complete(folder, said)
    if found is not None and found.kind.plain == LOADED:
        model = model.dequantize(torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.float()


def skeleton(folder: Path) -> Any:
    """The model of a checkpoint folder on the device ``meta``, with the layers that it had before it was quantised.

    Raises:
        ValueError, OSError: as transformers raises them: the folder holds no such model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    config = config_of(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def parameter_count(model: Any, folder: Path) -> int:
    """Parameters of a model; of one whose layers hold several in one number, as before it was quantised."""
    if quantisation_of(model.config) is not None:
        model = skeleton(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a package within one that is missing
        return False
