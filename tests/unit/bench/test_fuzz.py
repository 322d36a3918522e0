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
