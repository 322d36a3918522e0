"""What bench/fuzz.py changes, and what it watches."""

import json
import random
import shutil
import subprocess

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safetykit.adapters.artifact.manifest import AdapterManifest, load_sealed
from safetykit.adapters.errors import InvalidArtifact, SafetykitError
from safetykit.bench._fuzz.artifacts import KINDS, make_checkpoint, seal
from safetykit.bench._fuzz.guard import Guard
from safetykit.bench._fuzz.mutants import changed_json, mutate
from safetykit.bench.fuzz import COUNTED, answers, contents, drawn_changes, fuzz
from safetykit.bench.kills import moment_of

TREE = {"a": [1, 2.5, "x", None, {"b": True}], "files": {"f.json": "0" * 64}, "schema_version": 1}
BODY = json.dumps(TREE).encode()


def test_mutants_differ_and_are_those_of_their_seed():
    first, again, other = (
        [mutate("m.json", BODY, random.Random(seed)) for seed in range(n, n + 40)] for n in (0, 0, 99)
    )
    assert first == again != other
    assert len(set(first)) > 25
    assert sum(one != BODY for one in first) > 30


def test_most_changes_of_a_tree_are_json_and_some_are_deep():
    made = [changed_json(BODY, random.Random(seed)) for seed in range(200)]
    assert all(isinstance(json.loads(one), object) for one in made)
    assert any(one.count(b"[") > 50 for one in made)


@pytest.mark.parametrize("data", [b"", b"x", (9).to_bytes(8, "little") + b'{"a":{}}' + bytes(4)])
def test_files_that_are_nothing_yet_can_be_changed(data):
    for seed in range(50):
        assert isinstance(mutate("index.safetensors", data, random.Random(seed)), bytes)


def test_a_changed_manifest_is_sealed_so_that_only_its_contents_are_wrong():
    sealed = seal(BODY, {"f.json": b"other"})
    assert json.loads(sealed)["files"]["f.json"] != "0" * 64
    with pytest.raises(InvalidArtifact, match="not valid at|does not know"):
        load_sealed(AdapterManifest, sealed, "manifest.json")
    assert seal(b"no json", {}) == b"no json"


def test_the_guard_sees_programs_pickles_and_code_of_the_folder(tmp_path):
    guard = Guard(tmp_path, allowed=("kept.py",))
    code = compile("1", str(tmp_path / "evil.py"), "exec")
    exec(code)
    assert guard.found == []
    guard.watching = True
    exec(code)
    exec("1 + 1")
    with pytest.raises(FileNotFoundError):
        subprocess.Popen([str(tmp_path / "no such program")])
    with pytest.raises(FileNotFoundError):
        subprocess.Popen([str(tmp_path / "kept.py")])
    json.loads(BODY)
    guard.watching = False
    assert len(guard.found) == 3 and "evil.py" in guard.found[0] and "no such program" in guard.found[2]


def test_an_interrupted_run_counts_what_is_known_of_the_same_seed(tmp_path):
    known = {"mutants": 9, "seed": 3, **dict.fromkeys(COUNTED, 1), "peak_mb": 1.0, "slowest": 0.5}
    (tmp_path / "artifacts" / "index").mkdir(parents=True)
    assert list(fuzz("index", tmp_path, 9, 3, known)) == []  # nothing is loaded again


@pytest.mark.parametrize(("number", "event"), [(0, False), (1, False), (2, True), (3, True), (6, True), (199, True)])
def test_moments_are_spread_over_a_command(number, event):
    moment = moment_of(number, random.Random(1), 2.0, 40)
    assert (moment.event is not None) == event
    assert 0 <= moment.seconds < 2 and (not event or 1 <= moment.event <= 40)


def test_moments_by_time_reach_all_parts_and_most_by_touches_the_last():
    moments = [moment_of(number, random.Random(number), 1.0, 100) for number in range(200)]
    tenths = {int(one.seconds * 10) for one in moments if one.event is None}
    touches = [one.event for one in moments if one.event is not None]
    assert tenths == set(range(10)) and sum(at > 84 for at in touches) > 60 and min(touches) < 10


def test_later_rounds_kill_outright():
    sent = [moment_of(number, random.Random(number), 1.0, 100).sent for number in range(350)]
    assert {one.name for one in sent[:200]} == {"SIGKILL", "SIGTERM", "SIGHUP"}
    assert {one.name for one in sent[200:]} == {"SIGKILL"}


class Busy:
    """A pipe that stays empty, and a process that uses so much of the processor while it does."""

    def __init__(self, each):
        self.each, self.spent, self.asked = each, 0.0, 0

    def poll(self, seconds):
        self.asked, self.spent = self.asked + 1, self.spent + self.each
        return False

    def cpu_times(self):
        return (self.spent, 0.0, 0.0, 0.0, 0.0)


def test_a_load_is_given_up_by_its_processor_time_and_late_by_the_clock():
    hanging, waiting = Busy(1.0), Busy(0.01)
    assert not answers(hanging, hanging) and 60 <= hanging.asked <= 62
    assert not answers(waiting, waiting) and waiting.asked == 600


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=[] if one in ("adapter", "index") else pytest.mark.exhaustive) for one in KINDS]
)
def test_hypothesis_finds_no_change_that_ends_in_an_untyped_error(kind, tmp_path, request):
    """The same changes as the benchmark's, drawn by Hypothesis, which gives the smallest that fails."""
    torch.set_flush_denormal(False)  # which a test that trained in this process left on, and Hypothesis refuses
    make_checkpoint(model := tmp_path / "model", tmp_path)
    KINDS[kind].make(pristine := tmp_path / "pristine", model)
    work = shutil.copytree(pristine, tmp_path / "work")
    whole, many = contents(pristine), request.config.getoption("exhaustive")

    @settings(
        max_examples=2000 if many else 100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def load(drawn):
        made = drawn_changes(kind, pristine, drawn)
        for name, data in made.items():
            (work / name).write_bytes(data)
        try:
            KINDS[kind].load(work)
        except SafetykitError:
            pass
        finally:
            for name in made:
                (work / name).write_bytes(whole[name])

    load()
