"""A setting that is wrong, unknown or without effect is refused, with the way out."""

import subprocess
import sys
from typing import Literal

import pytest

from safetykit.adapters.errors import UsageError
from safetykit.adapters.layers import Layers
from safetykit.adapters.settings import POSITIVE, Settings, choices, plain_type, setting, spelled_as_options


class Example(Settings):
    gate: Literal["paper", "calibrated"] = setting("paper", "How the threshold is set.")
    weight: float = setting(1.0, "Of the loss.", ge=0)
    false_positive_rate: float = setting(0.02, "Share above it.", acts={"gate": "calibrated"}, ge=0, lt=1)
    centred: bool = setting(True, "Without means.", acts=({"weight": POSITIVE}, {"gate": "calibrated"}))
    layers: Layers | None = setting(None, "Which.")
    rank: int | None = setting(None, "How many.", ge=1, option="k")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gate": "papr"}, "gate cannot be 'papr'. It is paper or calibrated. Did you mean 'paper'?"),
        ({"gate": "PAPER"}, "Did you mean 'paper'?"),
        ({"gate": "zzz"}, "gate cannot be 'zzz'. It is paper or calibrated."),
        ({"gat": "paper"}, "Example has no setting 'gat'. Did you mean 'gate'?"),
        ({"zzz": 1}, "It has gate, weight, false_positive_rate"),
        ({"gate": "calibrated", "false_positive_rate": 1.5}, "false_positive_rate cannot be 1.5. It is below 1."),
        ({"rank": 0}, "rank cannot be 0. It is at least 1."),
        ({"rank": "many"}, "rank cannot be 'many'"),
        ({"weight": float("nan")}, "weight cannot be nan"),
        ({"layers": (2, -1)}, "layers cannot be -1. It is at least 0."),
        ({"layers": "-1"}, "'-1' names no layers. Write for example 3-5"),
        ({"layers": "decoder.layers.3"}, "names no layers"),
        ({"layers": "5-3"}, "'5-3' names no layers"),
        ({"layers": ()}, "layers names nothing"),
        ({"false_positive_rate": 0.1}, "false_positive_rate does nothing with gate paper."),
        ({"false_positive_rate": 0.02}, "it acts with gate calibrated"),
        ({"weight": 0, "centred": True}, "it acts with weight above 0 or with gate calibrated"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(given, message):
    with pytest.raises(UsageError) as caught:
        Example(**given)
    assert message in str(caught.value)


def test_layers_are_read_from_text_numbers_and_ranges():
    for given in ("2-4", "4,2-3", (2, 3, 4), [2, 3, 4], range(2, 5)):
        assert Example(layers=given).layers == (2, 3, 4)
    assert Example(layers=3).layers == (3,)


def test_the_command_line_calls_settings_by_their_options():
    with spelled_as_options(), pytest.raises(UsageError, match="--false-positive-rate does nothing with --gate paper"):
        Example(false_positive_rate=0.1)
    with spelled_as_options(), pytest.raises(UsageError, match="--k cannot be 0"):
        Example(rank=0)


def test_a_change_is_checked_like_a_new_one_and_keeps_what_was_given():
    first = Example(gate="calibrated", false_positive_rate=0.1)
    assert first.but(rank=3) == Example(gate="calibrated", false_positive_rate=0.1, rank=3)
    assert first.but(gate="paper") == Example(), "what was given before and acts no more is let go"
    with pytest.raises(UsageError, match="does nothing with gate paper"):
        first.but(gate="paper", false_positive_rate=0.1)
    assert Example().but(gate="calibrated").gate == "calibrated"


def test_a_record_of_all_settings_gives_them_back_and_its_values_are_checked():
    first = Example(rank=3)
    again = Example.recorded({**first.values(), "found": 7})
    assert again == first
    assert again.but(rank=4).rank == 4
    with pytest.raises(UsageError, match="gate cannot be 'papr'"):
        Example.recorded({**first.values(), "gate": "papr"})


def test_equal_settings_are_one_key_and_nothing_changes_in_place():
    assert len({Example(), Example(gate="paper"), Example(rank=1)}) == 2
    with pytest.raises(ValueError, match="frozen"):
        Example().rank = 2


def test_a_field_tells_the_command_line_its_type_and_choices():
    fields = Example.model_fields
    assert choices(fields["gate"]) == ("paper", "calibrated")
    assert {name: plain_type(field) for name, field in fields.items()} == {
        "gate": str,
        "weight": float,
        "false_positive_rate": float,
        "centred": bool,
        "layers": str,
        "rank": int,
    }


def test_settings_need_no_torch():
    code = "import sys; import safetykit.adapters.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
