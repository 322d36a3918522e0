"""A weight update says what one weight becomes, exactly."""

import pytest
import torch

from safetykit.adapters.artifact.updates import WeightUpdate, by_parameter, compose
from safetykit.adapters.errors import InvalidArtifact


def low_rank(seed: int, rows: int = 5, columns: int = 7, rank: int = 2) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return WeightUpdate("w", {"up": up, "down": down})


def test_a_low_rank_update_adds_its_product_and_a_value_takes_the_place():
    old, update = torch.randn(5, 7), low_rank(0)
    assert torch.allclose(update.apply(old), old + update.tensors["up"] @ update.tensors["down"], atol=1e-6)
    value = torch.randn(5, 7)
    assert torch.equal(WeightUpdate("w", {"value": value}).apply(old), value)


def test_the_new_weight_keeps_the_dtype_of_the_old():
    assert low_rank(0).apply(torch.randn(5, 7).half()).dtype == torch.float16


def test_updates_compose_in_order():
    old, value = torch.randn(5, 7), torch.randn(5, 7)
    replaced = WeightUpdate("w", {"value": value})
    first, second = low_rank(1), low_rank(2)
    change = second.tensors["up"].double() @ second.tensors["down"].double()
    assert torch.equal(compose([first, replaced], old), value.double())
    assert torch.allclose(compose([replaced, second], old), value.double() + change, atol=1e-14)


def test_composing_rounds_nothing_on_the_way():
    """Two changes that cancel leave a float16 weight as it was, though each alone would round it."""
    old, update = torch.randn(5, 7).half(), low_rank(3)
    back = WeightUpdate("w", {"up": -update.tensors["up"], "down": update.tensors["down"]})
    assert torch.equal(compose([update, back], old).half(), old)


def test_composing_leaves_the_old_weight_alone():
    old = torch.randn(5, 7)
    kept = old.clone()
    compose([low_rank(0)], old)
    assert torch.equal(old, kept)


def test_updates_are_grouped_by_parameter_in_order():
    first, other, second = low_rank(0), WeightUpdate("v", {"value": torch.ones(1)}), low_rank(1)
    assert by_parameter([first, other, second]) == {"w": (first, second), "v": (other,)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"up": torch.ones(2, 1)}, r"holds \['up'\], not value, or up and down"),
        ({"value": torch.tensor([1.0, torch.nan])}, "w holds NaN or infinity.*Fit the adapter again"),
        ({"up": torch.ones(2, 1), "down": torch.ones(2, 3)}, r"up \(2, 1\) and down \(2, 3\), whose product does not"),
    ],
)
def test_what_is_no_update_is_refused(tensors, message):
    with pytest.raises(InvalidArtifact, match=message):
        WeightUpdate("w", tensors)


def test_another_shape_is_refused():
    with pytest.raises(InvalidArtifact, match=r"gives shape \(5, 7\), the base has \(7, 5\).*another model"):
        low_rank(0).apply(torch.randn(7, 5))
    with pytest.raises(InvalidArtifact, match="The base has no w to add to"):
        low_rank(0).apply(None)
