"""Commands that a launcher of several processes starts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workshop import safetykit

PAGE = Path(__file__).parents[2] / "docs/howto/processes.md"
BINARIES = Path(sys.executable).parent


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
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_command_that_cannot_share_its_work_says_so(launched, call, typed):
    code, out, err = call(*typed.split())
    assert (code, out) == (2, "")
    said = f"error: `safetykit {REFUSED[typed]}` does not share its work, and 2 processes were started for it.\n"
    assert err == said + "next:  Run it on its own, without the launcher.\n"


def started(launcher, workshop, out, *more):
    """The page's command of this launcher, on the reference VLM."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"{launcher} "))
    words = shlex.split(line)
    given = {"./my-vlm": "reference:mild", "records/": workshop["records"], words[words.index("-o") + 1]: str(out)}
    command = [str(BINARIES / words[0]), *(given.get(word, word) for word in words[1:]), *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rank_of(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word for word in words if word.startswith(b"RANK="))


@pytest.mark.slow
def test_two_processes_write_what_one_writes(workshop, tmp_path):
    job = started("accelerate", workshop, tmp_path / "guard", "--json")
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    made, alone = (
        {path.name: path.read_bytes() for path in Path(one).iterdir()}
        for one in (tmp_path / "guard", workshop["guard"])
    )
    assert made.keys() == alone.keys()
    assert [name for name in made if made[name] != alone[name]] == []
    assert json.loads(out)["adapter"] == str(tmp_path / "guard")  # printed once
    assert err.count("fitting ...") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are told apart by /proc")
def test_a_killed_process_ends_the_job_and_one_process_goes_on(workshop, tmp_path):
    words = ("eval", "reference:mild", "--data", workshop["records"], "--batch-size", 1, "--json")
    out, journal = tmp_path / "evaluation.json", tmp_path / ".evaluation.json.partial.jsonl"
    job = started("torchrun", workshop, out, "--batch-size", 1, "--json")
    while not journal.exists() or journal.read_text().count("\n") < 4:
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(next(pid for pid in children if rank_of(pid) == b"RANK=1")), signal.SIGKILL)
    printed, err = job.communicate(timeout=120)
    assert job.returncode == 1 and "exitcode  : 7" in err
    said = [line for line in err.splitlines() if line.startswith(("error:", "next:"))]
    assert len(said) == 2 and ("one of its processes is gone" in said[0] or "Another process of this job" in said[0])
    assert json.loads(printed)["error"]["exit_code"] == 7
    assert not out.exists()
    done = journal.read_text().count("\n") - 1
    assert 0 < done < 24
    assert safetykit(*words, "-o", out).code == 0 and not journal.exists()
    assert safetykit(*words, "-o", tmp_path / "again.json").code == 0
    assert out.read_bytes() == (tmp_path / "again.json").read_bytes()
