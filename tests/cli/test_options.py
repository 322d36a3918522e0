"""Every option of every command, passed on the command line of the reference VLM, with the effect it is to have."""

import pytest
from command_cases import CASES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line.split(" --json")[0][:80])
def test_it_acts(workshop, case):
    done = case.run(workshop)
    assert done.code == 0, done.err
    said = case.check(done, workshop)
    assert all(said) if isinstance(said, list) else said is None or said
