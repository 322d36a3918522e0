"""A detector's probe opens another adapter's push: exactly for planted rows, and nothing else is touched."""

import dataclasses

import pytest
import torch
from affine import adapter_of
from planted import PlantedModel

from safetykit.adapters import Adapter, Intervention, InvalidArtifact, Site, UsageError, get_op
from safetykit.adapters.artifact.gate import Gate, gated_by
from safetykit.adapters.artifact.manifest import DetectorInfo
from safetykit.adapters.errors import WrongBase
from safetykit.adapters.ops.gating import HeldGate

D = 16
BASE = PlantedModel(d_model=D, n_layers=8).base
HARM = torch.nn.functional.normalize(torch.randn(2, D, generator=torch.Generator().manual_seed(1)), dim=1)


def probe(layers=(1, 3), threshold=2.0, base=BASE, **more) -> Adapter:
    """Reads the planted direction of each of its layers."""
    weight = torch.cat([HARM[at % 2] for at in range(len(layers))])
    *reads, site = map(Site.block, layers)
    tensors = {"weight": weight, "bias": torch.tensor(0.0)}
    item = Intervention("LinearProbe", site, "last", "prefill", tensors, reads=tuple(reads))
    detector = DetectorInfo(threshold=threshold, refusal="no.", refusal_token=7)
    return Adapter(
        adapter_of(base).info, (item,), {"calibration": [{"what": "detector", **SEEN}], **more}, None, detector
    )


SEEN = {"false_positive_rate": 0.1, "recall": 0.9, "scores": [-5.0, 9.0]}


def steering(layer, phase="both", strength=1.0, kind="block"):
    random = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(D, 1, generator=random) for name in ("up", "down")}
    return Intervention(
        "NullSpaceSteering", Site(kind, layer), "all", phase, tensors | {"strength": torch.tensor(strength)}
    )


def guarding(layer):
    """VLM-Guard's push with a gate of its own that is always closed."""
    basis = torch.linalg.qr(torch.randn(D, 2, generator=torch.Generator().manual_seed(4))).Q
    tensors = {
        "basis": basis,
        "mean": torch.zeros(D),
        "gate": torch.zeros(D),
        "threshold": torch.tensor(1.0),
        "alpha": torch.tensor(2.0),
    }
    return Intervention("GatedSteering", Site.block(layer), "last", "prefill", tensors)


def planted(rows=8, tokens=5):
    """States of two blocks; harm is planted in both of them at the last position of every other row."""
    states = torch.randn(2, rows, tokens, D, generator=torch.Generator().manual_seed(5)) * 0.1
    harmful = torch.arange(rows) % 2 == 0
    states[:, harmful, -1] += 2 * HARM[:, None]
    return states, harmful


@pytest.mark.parametrize("corrector", [steering, guarding], ids=["NullSteer's", "VLM-Guard's"])
def test_the_push_acts_on_the_planted_rows_alone_and_leaves_the_others_bit_for_bit(corrector):
    (item,) = gated_by(adapter_of(BASE, corrector(3)), probe()).interventions
    states, harmful = planted()
    scope = torch.ones(*states.shape[1:3], 1)
    given = {"earlier": states[0, :, -1], **item.tensors}
    op = item.make_op()
    out, score = op(states[1], scope, **given)
    assert torch.equal(score > 0, harmful) and item.reads == (Site.block(1),)
    assert torch.equal(out[~harmful], states[1][~harmful])
    bare = corrector(3)
    inner = get_op(bare.op)
    wanted = inner(
        states[1], scope, **{**bare.tensors, **({"threshold": torch.tensor(-1e30)} if inner.extras else {})}
    )[0]
    assert torch.equal(out[harmful], wanted[harmful]) and not torch.equal(out[harmful], states[1][harmful])
    assert op.invariant(states[1], out, scope, **given) < 1e-6
    assert op.invariant(states[1], wanted, scope, **given) > 1e-2  # harmless rows have moved


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_closed_rows_stay_bit_for_bit_in_half_precision(dtype):
    (item,) = gated_by(adapter_of(BASE, steering(3)), probe()).interventions
    states, harmful = planted()
    hidden = states[1].to(dtype)
    out, _ = item.make_op()(hidden, torch.ones(*hidden.shape[:2], 1), earlier=states[0, :, -1], **item.tensors)
    assert out.dtype == dtype and torch.equal(out[~harmful], hidden[~harmful])


def test_what_the_prompt_decides_holds_while_the_answer_is_written():
    (item,) = gated_by(adapter_of(BASE, steering(5)), probe()).interventions
    assert (item.gate, item.phase, item.reads) == ("held", "both", (Site.block(1), Site.block(3)))
    states, harmful = planted()
    own, scope = torch.randn(8, 1, D), torch.ones(8, 1, 1)
    op = item.gated_op()
    assert isinstance(op, HeldGate)
    first = {"earlier": torch.cat([states[0, :, -1], states[1, :, -1]], 1), **item.tensors}
    _, held = op(own, scope, decides=torch.tensor(True), held=torch.zeros(8), **first)
    later = {"earlier": torch.zeros(8, 2 * D), **item.tensors}  # harm shows no more
    out, handed = op(own, scope, decides=torch.tensor(False), held=held, **later)
    assert torch.equal(handed, held) and torch.equal(held > 0, harmful)
    assert torch.equal(out[~harmful], own[~harmful]) and (out[harmful] != own[harmful]).any(-1).all()


def test_a_push_with_a_strength_a_phase_is_opened_by_the_states_before_both():
    found = gated_by(adapter_of(BASE, steering(3, "prefill"), steering(3, "decode", 2.0)), probe()).interventions
    assert [(item.phase, item.gate) for item in found] == [("decode", "held"), ("prefill", "per-token")]
    twice = adapter_of(BASE, steering(3), steering(3))
    with pytest.raises(UsageError, match="2 ops act on the prompt at decoder.layers.3, where the gate is read"):
        gated_by(twice, probe())
    assert len(gated_by(adapter_of(BASE, steering(4), steering(4)), probe()).interventions) == 2


def test_manifest_and_attachments_say_what_opens_it_and_survive_saving(tmp_path):
    promise = {"kept": []}
    judge = probe(budget=promise)
    adapter = gated_by(adapter_of(BASE, steering(5), steering(6)), judge)
    told = adapter.info.hyperparameters["gated_by"]
    assert (told["method"], told["layers"], told["threshold"]) == (judge.info.method, [1, 3], 2.0)
    assert adapter.attachments["budget"] == promise
    assert [row["what"] for row in adapter.attachments["calibration"]] == [
        "gate at decoder.layers.5",
        "gate at decoder.layers.6",
    ]
    read = Adapter.load(adapter.save(tmp_path / "gated"))
    assert [item.op for item in read.interventions] == ["NullSpaceSteeringByProbe"] * 2
    assert read.interventions[0].gate == "held" and read.info == adapter.info
    moved = dataclasses.replace(
        adapter.interventions[0], tensors={**adapter.interventions[0].tensors, "threshold": torch.tensor(9.5)}
    )
    folder = dataclasses.replace(adapter, interventions=(moved,)).save(tmp_path / "shut")
    with pytest.raises(InvalidArtifact, match="never opens"):
        Adapter.load(folder)


@pytest.mark.parametrize(
    ("corrector", "layers", "said"),
    [
        ((steering(2),), (1, 3), "The gate reads layer 3, and the first layer that is pushed is 2"),
        ((steering(3), steering(4)), (1, 3), "The gate reads layer 3, and the first layer that is pushed is 3"),
        ((steering(5, kind="mlp"),), (1, 3), "opens what is done to the output of a block"),
    ],
)
def test_a_probe_that_would_be_read_after_a_push_is_refused(corrector, layers, said):
    with pytest.raises(UsageError, match=said):
        gated_by(adapter_of(BASE, *corrector), probe(layers))


def test_what_cannot_be_a_gate_and_what_none_can_open_are_refused():
    judge, push = probe(), adapter_of(BASE, steering(5))
    with pytest.raises(UsageError, match="has no linear probe of the normal pass"):
        gated_by(push, push)
    with pytest.raises(UsageError, match="has no linear probe of the normal pass"):
        gated_by(push, gated_by(push, judge))
    with pytest.raises(UsageError, match="pushes no states that a gate could open"):
        gated_by(judge, judge)
    info = judge.info.model_copy(update={"hyperparameters": {"corrected_by": [{"method": "care"}]}})
    with pytest.raises(UsageError, match="judges states that correctors have changed"):
        Gate.of(dataclasses.replace(judge, info=info))
    other = judge.info.base.model_copy(update={"fingerprint": "1" * 64})
    with pytest.raises(WrongBase):
        gated_by(push, probe(base=other))


@pytest.mark.parametrize("name", ["SupervisedSteeringByProbe", "LinearProbeByProbe", "GatedSteeringByProbeByProbe"])
def test_there_is_no_op_of_what_no_probe_can_open(name):
    with pytest.raises(InvalidArtifact, match="Unknown op"):
        get_op(name)
