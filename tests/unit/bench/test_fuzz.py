"""What bench/fuzz.py changes, and what it watches."""

import json
import random
import subprocess

import pytest

from safetykit.adapters.artifact.manifest import AdapterManifest, load_sealed
from safetykit.adapters.errors import InvalidArtifact
from safetykit.bench._fuzz.artifacts import seal
from safetykit.bench._fuzz.guard import Guard
from safetykit.bench._fuzz.mutants import changed_json, mutate
from safetykit.bench.fuzz import COUNTED, fuzz
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
