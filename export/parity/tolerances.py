"""How far PyTorch and an export may be apart, by precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...adapters.artifact.manifest import Strict
from ..manifest import Precision
from ..runtime.onnx_vlm import OnnxVLM

if TYPE_CHECKING:
    import torch


class Tolerance(Strict):
    """Largest error that passes."""

    absolute: float
    relative: float

    def passes(self, error: float, scale: float) -> bool:
        """False for NaN."""
        return error <= self.limit(scale)

    def limit(self, scale: float) -> float:
        """The largest error that passes."""
        return self.absolute + self.relative * scale


class Tolerances(Strict):
    """What passes at one precision; ``flips`` is the share of records whose decision may change."""

    logits: Tolerance
    scores: Tolerance
    op: Tolerance
    invariant: Tolerance
    risk: Tolerance = Tolerance(absolute=0, relative=1e-5)
    drift: Tolerance | None = None
    flips: float


EXACT = Tolerance(absolute=0, relative=0)
# Logits in fp32: 3e-5 of the largest one. Two right computations differ by their rounding, which grows with the logits,
# and which a decoder can amplify: on the VLM of bench/real, PyTorch is 7e-6 and ONNX Runtime 9e-6 of the largest logit
# away from float64, and picture features that are 7e-6 off make up nearly all of that (bench/rounding.py). On the
# reference VLM it is 3e-6. A detector's risk is read from the same states. In fp16, PyTorch is 1.3e-2 and ONNX Runtime
# 8e-3 of the largest logit away there. A gate's score is judged by the size of the terms it sums: there 4e-6 of them
# apart in fp32 and 4e-3 in fp16.
TOLERANCES: dict[Precision, Tolerances] = {
    "fp32": Tolerances(
        logits=Tolerance(absolute=0, relative=3e-5),
        scores=Tolerance(absolute=1e-5, relative=1e-5),
        op=Tolerance(absolute=2e-6, relative=0),
        invariant=Tolerance(absolute=2e-6, relative=0),
        risk=Tolerance(absolute=0, relative=3e-5),
        flips=0,
    ),
    "fp16": Tolerances(
        logits=Tolerance(absolute=5e-3, relative=1.5e-2),
        scores=Tolerance(absolute=5e-3, relative=5e-3),
        op=Tolerance(absolute=1e-3, relative=0),
        invariant=Tolerance(absolute=1e-3, relative=0),
        risk=Tolerance(absolute=0, relative=1e-2),
        flips=0.002,
    ),
}

# PyTorch that computes in bfloat16 rounds to 8 bits where float16 has 11: eight times the error.
_NARROW = {
    "float16": TOLERANCES["fp16"],
    "bfloat16": Tolerances(
        logits=Tolerance(absolute=4e-2, relative=1.2e-1),
        scores=Tolerance(absolute=4e-2, relative=4e-2),
        op=TOLERANCES["fp16"].op,
        invariant=TOLERANCES["fp16"].invariant,
        risk=Tolerance(absolute=0, relative=8e-2),
        flips=0.02,
    ),
}
_FULL = TOLERANCES["fp32"]
# Against PyTorch with the graph's own weights, see :mod:`.held`, quantised graphs are as exact as others. Their drift
# from the checkpoint is the rounding of its weights, and so are decisions that flip: these limits only say that it is
# still the same model.
TOLERANCES["int4"] = _FULL.model_copy(update={"drift": Tolerance(absolute=0, relative=1), "flips": 0.2})
TOLERANCES["int8"] = _FULL.model_copy(update={"drift": Tolerance(absolute=0, relative=0.5), "flips": 0.1})


def tolerances_of(onnx_vlm: OnnxVLM, dtype: torch.dtype | None = None) -> Tolerances:
    """What passes for an export: by its precision, and for quantised ones also by the type they compute in.

    Args:
        dtype: that PyTorch computes in, float32 by default; a narrow one allows for its own rounding, where states
            pass through the model.
    """
    table = TOLERANCES[onnx_vlm.manifest.precision]
    if table.drift is not None and onnx_vlm.half:
        table = TOLERANCES["fp16"].model_copy(update={"drift": table.drift, "flips": table.flips})
    narrow = _NARROW.get(str(dtype).removeprefix("torch."))
    if narrow is None:
        return table
    wider = {name: _wider(getattr(table, name), getattr(narrow, name)) for name in ("logits", "scores", "risk")}
    return table.model_copy(update={**wider, "flips": max(table.flips, narrow.flips)})


def _wider(one: Tolerance, other: Tolerance) -> Tolerance:
    return Tolerance(absolute=max(one.absolute, other.absolute), relative=max(one.relative, other.relative))
