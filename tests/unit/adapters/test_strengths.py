"""An op's strength is a parameter that what it adds is proportional to; every corrector has it, or none could be it."""

import math

import pytest
import torch

from safetykit.adapters import Corrector
from safetykit.adapters.ops.op import get_op
from safetykit.adapters.ops.probed import SUFFIX
from safetykit.adapters.registry import load_ops

BATCH, SEQ, D, RANK, KEYS = 3, 5, 8, 2, 6
STRENGTHS = {
    "AdaptiveProjection": "alpha",
    "BenignInjection": None,
    "ConceptErasure": "beta",
    "ConditionalAddition": "alpha",
    "DirectionAddition": "strength",
    "GatedSteering": "alpha",
    "NullSpaceSteering": "strength",
    "ParallelProjection": "alpha",
    "ProbedPush": "alpha",
    "RampedPush": "alpha",
    "RetrievalCorrection": "strength",
    "SubspaceProjection": "beta",
    "SupervisedSteering": None,
    "TargetSteering": None,
}


def correctors(cls=Corrector):
    """Ours by their names, whatever else a run has registered; of those that a probe opens, see :mod:`test_gate`."""
    ours = hasattr(cls, "name") and cls.__module__.startswith("safetykit.") and not cls.name.endswith(SUFFIX)
    found = {cls.name: cls} if ours else {}
    return found | {name: one for below in cls.__subclasses__() for name, one in correctors(below).items()}


def drawn(op, seed):
    """States, a scope that leaves some tokens out, and parameters whose gates are open for some rows."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    matrices = ("basis", "visual_basis", "textual_basis", "up", "down", "left", "right")
    special = {
        "weight": (2 * D,),
        "query_weight": (4, D),
        "query_bias": (4,),
        "keys": (KEYS, 4),
        "values": (KEYS, D),
        "bias": (),
        "threshold": (),
        "alpha": (),
        "beta": (),
        "sense": (),
        "strength": (),
    }
    shapes = dict.fromkeys(matrices, (D, RANK)) | special
    tensors = {name: draw(*shapes.get(name, (D,))) for name in op.params if name != "ranks"}
    tensors |= {"ranks": torch.arange(2)} if "ranks" in op.params else {}
    tensors |= {name: draw(BATCH, D) for name in op.runtime_inputs}
    tensors |= {"earlier": draw(BATCH, D)} if op.reads_earlier else {}
    return draw(BATCH, SEQ, D), (draw(BATCH, SEQ, 1) > -1).float(), tensors


def test_every_corrector_says_its_strength_or_that_it_has_none():
    load_ops()
    assert {name: op.strength for name, op in correctors().items()} == STRENGTHS


OPENED = ("NullSpaceSteeringByProbe", "GatedSteeringByProbe", "AdaptiveProjectionByProbe")


@pytest.mark.parametrize("name", [*(name for name, strength in STRENGTHS.items() if strength), *OPENED])
def test_what_an_op_adds_is_proportional_to_its_strength(name):
    load_ops()
    op, moved = get_op(name), 0.0
    for seed in range(10):
        hidden, scope, tensors = drawn(op, seed)
        tensors[op.strength] = tensors[op.strength].abs() + 0.1  # the fitted one, of which the others are multiples
        fitted = op(hidden, scope, **tensors)[0] - hidden
        moved = max(moved, float(fitted.abs().max()))
        for factor in (0.0, 0.5, 1.0, 3.0):
            out = op(hidden, scope, **{**tensors, op.strength: factor * tensors[op.strength]})[0]
            torch.testing.assert_close(out - hidden, factor * fitted, rtol=1e-4, atol=1e-4)
            assert factor or torch.equal(out, hidden)
    assert moved > 0.1


@pytest.mark.parametrize("name", [name for name, strength in STRENGTHS.items() if strength is None])
def test_an_op_without_a_strength_has_no_parameter_that_switches_it_off(name):
    load_ops()
    op = correctors()[name]()
    numbers = [one for one, tensor in drawn(op, 0)[2].items() if tensor.ndim == 0 and one != "threshold"]
    for one in numbers:
        left = 0.0
        for seed in range(10):
            hidden, scope, tensors = drawn(op, seed)
            out = op(hidden, scope, **{**tensors, one: torch.tensor(0.0)})[0]
            left = max(left, float((out - hidden).abs().max()))
        assert left > 0.1 and math.isfinite(left)


def test_a_strength_that_is_no_parameter_is_noticed_where_it_is_written():
    with pytest.raises(TypeError, match="has no parameter 'alpha'"):

        class Wrong(Corrector):
            params = ("beta",)
            strength = "alpha"
