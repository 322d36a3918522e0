"""An adapter on disk: what is written comes back, and anything else is refused by name."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from safetykit.adapters import Adapter, InvalidArtifact, UsageError, VLMGuard, WrongBase, load_adapter, require_base
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.output import atomic_folder


@pytest.fixture
def folder(planted, records, tmp_path):
    return VLMGuard(layers=(0,)).fit(planted, records).save(tmp_path / "adapter")


def test_a_saved_adapter_loads_as_it_was(planted, records, tmp_path):
    adapter = VLMGuard(layers=(1, 2), rank=2).fit(planted, records)
    loaded = Adapter.load(adapter.save(tmp_path / "adapter"))
    assert loaded.info == adapter.info
    assert loaded.attachments == adapter.attachments
    for one, other in zip(adapter.interventions, loaded.interventions, strict=True):
        assert (one.op, one.site, one.scope, one.phase) == (other.op, other.site, other.scope, other.phase)
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_same_fit_gives_the_same_bytes(planted, records, tmp_path):
    first = VLMGuard(layers=(1,)).fit(planted, records).save(tmp_path / "a")
    second = VLMGuard(layers=(1,)).fit(planted, records).save(tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_every_flipped_byte_is_refused_and_the_file_named(folder):
    """All bytes of the manifest and the card, and a stride through the tensors."""
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        step = 1 if path.name != "adapter.safetensors" else max(1, len(original) // 200)
        for at in range(0, len(original), step):
            path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
            with pytest.raises(InvalidArtifact, match=path.name):
                load_adapter(folder)
        path.write_bytes(original)
    load_adapter(folder)


def test_every_truncation_is_refused_and_the_file_named(folder):
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for length in range(0, len(original), max(1, len(original) // 100)):
            path.write_bytes(original[:length])
            with pytest.raises(InvalidArtifact, match=path.name):
                load_adapter(folder)
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["adapter.safetensors", "manifest.json", "README.md", "spectra.json"])
def test_a_removed_or_linked_file_is_refused(folder, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    os.replace(folder / name, elsewhere)
    with pytest.raises(InvalidArtifact, match=f"{name} is missing"):
        load_adapter(folder)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(InvalidArtifact, match=f"{name} is a link"):
        load_adapter(folder)


def seal(folder, body):
    """Write a manifest whose own digest is right, as an attacker would."""
    body = {key: value for key, value in body.items() if key != "sha256"}
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / "manifest.json").write_bytes(canonical_json({**body, "sha256": digest}))


def reseal(folder, name, data):
    """Another file with its digest renewed."""
    (folder / name).write_bytes(data)
    body = json.loads((folder / "manifest.json").read_bytes())
    body["files"][name] = hashlib.sha256(data).hexdigest()
    seal(folder, body)


PATHS = ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "C:x", "a\0b", "", "a b", "~root", "x" * 90]
PATHS += ["con", "NUL", "aux.json", "com1.txt", "README.MD", "Adapter.safetensors"]  # not everywhere a file of its own


@pytest.mark.parametrize("name", PATHS)
def test_a_manifest_cannot_name_a_path_outside_its_folder(folder, name):
    body = json.loads((folder / "manifest.json").read_bytes())
    body["files"][name] = "0" * 64
    seal(folder, body)
    with pytest.raises(InvalidArtifact, match="manifest.json is not valid at files"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(schema_version=2), "schema version 2; this safetykit reads up to 1. Update safetykit"),
        (lambda b: b.update(surprise=1), "says surprise, which this version of safetykit does not know"),
        (lambda b: b["interventions"][0].update(op="Nope"), "Unknown op 'Nope'"),
        (lambda b: b["interventions"][0].update(site="decoder.layers.x"), "Unknown site 'decoder.layers.x'"),
        (lambda b: b["interventions"][0].update(scope="everything"), "not valid at interventions.0.scope"),
        (lambda b: b["interventions"][0]["tensors"]["basis"].update(shape=[32, 1]), r"0\.basis .* is .* \(32, 2\)"),
        (lambda b: b["interventions"][0]["tensors"]["basis"].update(name="9.z"), r"9\.z .* is missing"),
        (lambda b: b["interventions"][0]["tensors"].pop("mean"), "takes .*'mean'"),
        (lambda b: b["files"].pop("adapter.safetensors"), "names no adapter.safetensors"),
    ],
)
def test_a_forged_manifest_gets_one_readable_error(folder, change, message):
    body = json.loads((folder / "manifest.json").read_bytes())
    change(body)
    seal(folder, body)
    with pytest.raises(InvalidArtifact, match=message):
        load_adapter(folder)


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b'{"0": NaN}', b"[" * 100_000, b'"\\ud800"'])
def test_an_attachment_that_is_no_json_is_refused_with_its_digest_renewed(folder, body):
    reseal(folder, "spectra.json", body)
    with pytest.raises(InvalidArtifact, match=r"spectra\.json is not JSON"):
        load_adapter(folder)


@pytest.mark.parametrize("name", ["README.md", "spectra.json", "adapter.safetensors"])
def test_a_file_of_gigabytes_takes_no_memory(folder, name, monkeypatch):
    """Sparse, so that it takes no disk either; its digest is read as a stream."""
    with open(folder / name, "r+b") as file:
        file.truncate(3 * 2**30)
    held, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: held.append(path.stat().st_size) or read(path))
    if name == "README.md":
        monkeypatch.setattr("safetykit.adapters.artifact.folder.sha256_file", lambda path: "0" * 64)
    with pytest.raises(InvalidArtifact, match=f"{name} (is larger than|was changed)"):
        load_adapter(folder)
    assert max(held) < 2**20


def test_deeply_nested_json_is_refused(folder):
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(InvalidArtifact, match="manifest.json is not JSON"):
        load_adapter(folder)


def test_loading_opens_no_socket_and_runs_no_code(folder):
    """An audit hook sees every import of pickle machinery, process and connection."""
    watching, seen = [True], []
    forbidden = ("socket.connect", "subprocess.Popen", "os.system", "pickle.find_class", "os.exec", "os.posix_spawn")
    sys.addaudithook(lambda event, _: seen.append(event) if watching[0] and event in forbidden else None)
    load_adapter(folder)
    watching[0] = False
    assert seen == []


def test_nan_parameters_are_refused(planted, records):
    from dataclasses import replace

    item = VLMGuard(layers=(0,)).fit(planted, records).interventions[0]
    with pytest.raises(InvalidArtifact, match="Parameter mean of GatedSteering at decoder.layers.0 holds NaN"):
        replace(item, tensors={**item.tensors, "mean": item.tensors["mean"] * float("nan")})


def test_another_base_is_refused_with_exit_code_4(folder):
    with pytest.raises(WrongBase, match="fitted on model 000000000000.*--allow-wrong-base") as caught:
        require_base(load_adapter(folder), "f" * 64, "the model")
    assert caught.value.exit_code == 4


def test_a_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(UsageError, match="no adapter folder at .*safetykit fit"):
        load_adapter(tmp_path / "nothing")


def test_an_existing_folder_is_kept_unless_overwritten(planted, records, folder):
    adapter = VLMGuard(layers=(2,)).fit(planted, records)
    with pytest.raises(UsageError, match="already exists.*--overwrite"):
        adapter.save(folder)
    assert load_adapter(folder).info.hyperparameters["layers"] == [0]
    adapter.save(folder, overwrite=True)
    assert load_adapter(folder).info.hyperparameters["layers"] == [2]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(target) as work:
        (work / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write_atomic(tmp_path / "file", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
