"""What another library's error says, in one line."""

import pytest

from safetykit.toolkit.model.reasons import reason_of


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "ValueError"),
        ("  \n", "ValueError"),
        ("no such key\nat line 3", "no such key"),
        ("error for field 'x':\n    TypeError: no integer\nmore", "error for field 'x': TypeError: no integer"),
        ("it ends so:", "it ends so:"),
        ("x" * 999, "x" * 300),
    ],
)
def test_it_is_the_first_line_and_what_a_colon_announces(said, reason):
    assert reason_of(ValueError(said)) == reason
