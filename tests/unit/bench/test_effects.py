"""The bench of all methods: arms as they are typed, and what stands in its table."""

import pytest

from safetykit.adapters.errors import UsageError
from safetykit.bench import effects
from safetykit.toolkit.evaluation.evaluate import Decision


def answer(at, text, outcome, label="harmful", carrier="image", tags=()):
    return Decision(id=str(at), carrier=carrier, label=label, tags=tags, text=text, outcome=outcome, scores={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vlmguard", "Did you mean 'vlm-guard'"),
        ("vlm-guard alpha", "'alpha' of the arm 'vlm-guard alpha' is no setting"),
        ("vlm-guard alfa=2", "Did you mean 'alpha'"),
        ("vlm-guard + nullsteer rank=2", "rank does nothing with variant rank-one"),
        ("", "no method ''"),
    ],
)
def test_an_arm_that_cannot_be_fitted_is_refused_before_anything_is_measured(text, message):
    with pytest.raises(UsageError, match=message):
        effects.parse_arm(text)


def test_settings_are_spelled_as_on_the_command_line_and_become_what_they_are():
    (part,) = effects.parse_arm("A title: nullsteer decode-strength=3 layers=2,4-5 sweep").parts
    assert effects._typed(part) == {"decode_strength": 3.0, "layers": (2, 4, 5)} and part.sweep


def test_a_refusal_that_is_not_in_the_models_own_words_is_counted_as_such():
    own = effects.refusals([answer(0, "sorry, i can not help.", "refused"), answer(1, "a kite.", "answered")])
    found = effects.figures(
        [
            answer(0, "sorry, i can not help.", "refused"),
            answer(1, "sorry, i can twice.", "refused"),
            answer(2, "a kite.", "answered"),
            answer(3, "sorry", "refused", label="harmless", tags=("look-alike",)),
        ],
        own,
    )
    assert (found["own_words"]["count"], found["own_words"]["n"]) == (1, 2)
    assert found["rows"]["image"]["metrics"]["attack_success"]["count"] == 1
    results = {"mild": {"arms": {"undefended": found, "A": found}}}
    table = effects.table(results, ["A", "B"])
    assert "| A | – | 33.3 %" in table and "| B |" not in table
    assert "100.0 % (21–100) | 100.0 % (21–100) | 0.0 % (0–79) | 50.0 %" in table


def test_the_arms_that_are_measured_when_none_is_named_are_arms():
    assert len({effects.parse_arm(text).title for text in effects.ARMS}) == len(effects.ARMS)
