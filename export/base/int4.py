"""How a decoder is rounded to 4 bits: what may be chosen, and what is chosen otherwise. No torch is imported here."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator

from ...adapters.errors import UsageError
from ...adapters.settings import setting
from ...toolkit.evaluation.options import Options

BLOCKS: Final = (16, 32, 64, 128, 256)  # those that ONNX Runtime computes


def _block(given: int) -> int:
    if given not in BLOCKS:
        raise UsageError(
            f"Blocks of {given} weights are not computed by ONNX Runtime.",
            f"Take {', '.join(map(str, BLOCKS[:-1]))} or {BLOCKS[-1]}.",
        )
    return given


class Int4Options(Options):
    """How the matrices of a decoder become codes of 4 bits."""

    rounding: Literal["symmetric", "asymmetric", "k-quant"] = setting(
        "symmetric",
        "How int4 weights are rounded: around 0, between the ends of each block, or by a search for these ends.",
    )
    block_size: Annotated[int, AfterValidator(_block)] = setting(
        32, "Weights of an int4 matrix that share a scale: 16, 32, 64, 128 or 256."
    )
    head_8bit: bool = setting(False, "Round an int4 export's head to 8 bits instead.", option="head-8bit")


INT4_CHOICES: Final = tuple(Int4Options.model_fields)
