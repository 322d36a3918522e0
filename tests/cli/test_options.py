"""Every option of every command, passed on the command line of the reference VLM, with the effect it is to have."""

import pytest
from command_cases import CASES
from workshop import Workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line.split(" --json")[0][:80])
def test_it_acts(workshop, case):
    done = workshop.run(case.line)
    assert done.code == 0, done.err
    said = case.check(done, workshop)
    assert all(said) if isinstance(said, list) else said is None or said
