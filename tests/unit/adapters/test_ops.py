"""Ops are pure functions with theorems."""

import pytest
import torch

from safetykit.adapters import ScopeMask, UsageError, get_op
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact
from safetykit.adapters.ops.op import Op

D, M = 16, 3


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(D, M, generator=generator))
    return {
        "hidden": torch.randn(2, 5, D, generator=generator),
        "basis": basis,
        "mean": torch.randn(D, generator=generator),
        "reference": torch.randn(2, D, generator=generator),
        "target": torch.randn(D, generator=generator),
        "gate": basis[:, 0],
        "all": torch.ones(2, 5, 1),
    }


def test_projection_leaves_nothing_of_the_centred_state_in_the_subspace(parts):
    op = get_op("SubspaceProjection")
    (out,) = op(parts["hidden"], parts["all"], basis=parts["basis"], mean=parts["mean"], beta=torch.tensor(1.0))
    assert ((out - parts["mean"]) @ parts["basis"]).abs().max() < 1e-5
    (again,) = op(out, parts["all"], basis=parts["basis"], mean=parts["mean"], beta=torch.tensor(1.0))
    assert torch.allclose(out, again, atol=1e-5)  # a projection is idempotent


def test_projection_keeps_what_is_orthogonal_to_the_subspace(parts):
    (out,) = get_op("SubspaceProjection")(
        parts["hidden"], parts["all"], basis=parts["basis"], mean=parts["mean"], beta=torch.tensor(1.0)
    )
    moved = out - parts["hidden"]
    assert torch.allclose(moved, (moved @ parts["basis"]) @ parts["basis"].T, atol=1e-5)


def test_the_projections_invariant_sees_a_transposed_sign(parts):
    op, one = get_op("SubspaceProjection"), torch.tensor(1.0)
    arguments = {"basis": parts["basis"], "mean": parts["mean"], "beta": one}
    (out,) = op(parts["hidden"], parts["all"], **arguments)
    assert op.invariant(parts["hidden"], out, parts["all"], **arguments) < 1e-6
    wrong = 2 * parts["hidden"] - out
    assert op.invariant(parts["hidden"], wrong, parts["all"], **arguments) > 0.1


@pytest.mark.parametrize("name", ["GatedSteering", "TargetSteering", "SupervisedSteering"])
def test_a_state_off_by_a_share_of_its_size_moves_the_margin_by_that_share_of_its_magnitude(name, parts):
    op, generator = get_op(name), torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 5, D, generator=generator).double()
    score = (hidden[0, -1] - parts["mean"]) @ parts["gate"].double()
    tensors = {key: parts[key].double() for key in ("basis", "mean", "gate")}
    tensors |= {"threshold": score} | {key: torch.ones(()) for key in op.params[4:]}  # the first row's terms cancel
    magnitude, before = op.magnitude(hidden, **tensors), op.margin(hidden, **tensors)
    assert magnitude.shape == (2,) and before[0].abs() < 1e-12 < magnitude[0]
    moved = []
    for _ in range(300):
        noise = torch.randn(hidden.shape, generator=generator).double()
        noise *= 1e-6 * hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        moved.append((op.margin(hidden + noise, **tensors) - before) / (1e-6 * magnitude))
    assert 0.8 < torch.stack(moved).std() < 1.2


@pytest.mark.parametrize("name", ["GatedSteering", "TargetSteering", "SupervisedSteering"])
def test_a_closed_gate_returns_the_state_bit_for_bit(name, parts):
    op = get_op(name)
    parts |= {"threshold": torch.tensor(1e9), "alpha": torch.tensor(2.0)}
    arguments = {key: parts[key] for key in (*op.runtime_inputs, *op.params)}
    out, score, *_ = op(parts["hidden"], parts["all"], **arguments)
    assert torch.equal(out, parts["hidden"])
    assert (score < 0).all()


@pytest.mark.parametrize("name", ["SubspaceProjection", "GatedSteering", "TargetSteering", "SupervisedSteering"])
def test_tokens_out_of_scope_are_returned_bit_for_bit(name, parts):
    op = get_op(name)
    parts |= {"threshold": torch.tensor(-1e9), "alpha": torch.tensor(2.0), "beta": torch.tensor(1.0)}
    scope = torch.zeros(2, 5, 1)
    scope[:, -1] = 1
    arguments = {key: parts[key] for key in (*op.runtime_inputs, *op.params)}
    out = op(parts["hidden"], scope, **arguments)[0]
    assert torch.equal(out[:, :-1], parts["hidden"][:, :-1])
    assert not torch.equal(out[:, -1], parts["hidden"][:, -1])


def test_an_open_target_gate_puts_the_state_on_the_target_inside_the_subspace(parts):
    op = get_op("TargetSteering")
    arguments = {key: parts[key] for key in ("basis", "mean", "gate", "target")}
    arguments |= {"threshold": torch.tensor(-1e9), "alpha": torch.tensor(1.0)}
    out, _ = op(parts["hidden"], parts["all"], **arguments)
    wanted = (parts["target"] @ parts["basis"]).expand(2, 5, M)
    assert torch.allclose((out - parts["mean"]) @ parts["basis"], wanted, atol=1e-5)
    assert op.invariant(parts["hidden"], out, parts["all"], **arguments) < 1e-6


def test_supervision_by_the_same_state_changes_nothing(parts):
    """With x = h and α = 1 the push P((x − μ) − (h − μ)) is zero."""
    op = get_op("SupervisedSteering")
    reference = parts["hidden"][:, -1]
    scope = torch.zeros(2, 5, 1)
    scope[:, -1] = 1
    out, _, state = op(
        parts["hidden"],
        scope,
        reference=reference,
        basis=parts["basis"],
        mean=parts["mean"],
        gate=parts["gate"],
        threshold=torch.tensor(-1e9),
        alpha=torch.tensor(1.0),
    )
    assert torch.allclose(out, parts["hidden"], atol=1e-6)
    assert torch.equal(state, reference)


def test_float16_states_are_projected_in_float32(parts):
    """An activation of 900 would leak 0.03 into the subspace if the products were float16."""
    hidden = parts["hidden"].clone()
    hidden[0, 0, 0] = 900
    (out,) = get_op("SubspaceProjection")(
        hidden.half(), parts["all"], basis=parts["basis"], mean=parts["mean"], beta=torch.tensor(1.0)
    )
    assert out.dtype == torch.float16
    (exact,) = get_op("SubspaceProjection")(
        hidden.half().float(), parts["all"], basis=parts["basis"], mean=parts["mean"], beta=torch.tensor(1.0)
    )
    assert torch.equal(out, exact.half())


@pytest.mark.parametrize(
    ("scope", "phase", "past", "expected"),
    [
        ("all", "both", 0, [1, 1, 1]),
        ("all", "prefill", 0, [1, 1, 1]),
        ("all", "prefill", 4, [1, 1, 1]),  # a further chunk of a prompt
        ("all", "decode", 4, [0, 0, 0]),
        ("all", "decode", 0, [0, 0, 0]),
        ("last", "both", 0, [0, 0, 1]),
        ("vision", "both", 0, [0, 1, 0]),
        ("text", "both", 0, [1, 0, 1]),
    ],
)
def test_scope_and_phase_choose_tokens(scope, phase, past, expected):
    vision = torch.tensor([[False, True, False]])
    mask = ScopeMask(scope, phase)(torch.randn(1, 3, D), torch.tensor(past), vision)
    assert mask[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("phase", "past", "expected"), [("prefill", 0, 1), ("prefill", 4, 0), ("decode", 4, 1)])
def test_a_single_token_is_of_the_answer_unless_it_is_the_first(phase, past, expected):
    mask = ScopeMask("last", phase)(torch.randn(1, 1, D), torch.tensor(past), torch.zeros(1, 1, dtype=torch.bool))
    assert mask.item() == expected


def test_two_ops_may_not_share_a_name():
    with pytest.raises(TypeError, match="Two ops are called 'SubspaceProjection'"):
        type("Other", (Op,), {"name": "SubspaceProjection", "params": (), "forward": lambda self: ()})


def test_an_unknown_op_names_the_known_ones():
    with pytest.raises(InvalidArtifact, match="Unknown op 'Nope'.*SubspaceProjection"):
        get_op("Nope")


@pytest.mark.parametrize("text", ["decoder.layers.0", "decoder.layers.14.mlp", "decoder.layers.3.attn", "logits"])
def test_sites_have_one_spelling(text):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("text", ["decoder.layers.01", "decoder.layers.-1", "layers.3", "decoder.layers.3.out", ""])
def test_other_spellings_are_refused_with_the_right_ones(text):
    with pytest.raises(UsageError, match=r"Unknown site .* Sites are spelled decoder\.layers\.N"):
        Site.parse(text)


def test_a_layer_beyond_the_model_is_refused():
    with pytest.raises(UsageError, match="decoder has 8 layers.*last one is 7"):
        Site.block(8).require_within(8)
