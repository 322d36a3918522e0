"""Commands that a launcher of several processes starts."""

import pytest


@pytest.fixture
def launched(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


REFUSED = {
    "export m -o out": "export",
    "verify out": "verify",
    "index search i --text a": "index search",
    "doctor": "doctor",
    "inspect m": "inspect",
    "fit tga m --data reference -o out": "fit tga",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_command_that_cannot_share_its_work_says_so(launched, call, typed):
    code, out, err = call(*typed.split())
    assert (code, out) == (2, "")
    said = f"error: `safetykit {REFUSED[typed]}` does not share its work, and 2 processes were started for it.\n"
    assert err == said + "next:  Run it on its own, without the launcher.\n"
