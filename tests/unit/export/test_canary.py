"""Canaries: an export gives what it gave; one whose adapters do not act, or act otherwise, does not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from safetykit import InvalidArtifact, OnnxVLM, ParityFailed, UsageError
from safetykit.export.commands.verification import verify_folder
from safetykit.export.layouts.prepare import PROGRAM, program
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest
from safetykit.export.runtime.canary import Canaries, read_canaries


@pytest.fixture
def folder(canary_export, tmp_path):
    return shutil.copytree(canary_export, tmp_path / "export")


def asked(folder):
    """The canaries alone: `verify` finds sooner that a folder was sealed again, by its provenance."""
    return OnnxVLM.from_pretrained(folder).check_canaries()


def sealed(folder):
    write_manifest(read_manifest(folder, verify=False), folder)


def changed(folder, change):
    path = folder / LAYOUT.canary
    body = json.loads(path.read_text())
    change(body["canaries"])
    path.write_text(json.dumps(body))
    sealed(folder)


def test_an_export_gives_what_it_gave(canary_export):
    found = verify_folder(canary_export, canary=True)["canary"]
    assert found == {"asked": 6, "telling": 6, "providers": ["CPUExecutionProvider"]}
    kept = read_canaries(canary_export, read_manifest(canary_export).files)
    assert {bool(one.image) for one in kept.canaries} == {True, False}
    assert all(one.risk is not None and (one.refused or one.best) for one in kept.canaries)


def test_adapters_that_do_not_act_are_noticed(folder):
    """As where a runtime drops the ops, or feeds the switch that turns them off."""
    switched = OnnxVLM.from_pretrained(folder)
    decoder = switched._decoder
    run = decoder.run
    decoder.run = lambda outputs, feeds: run(outputs, {**feeds, "safetykit.enabled": np.array(0, np.float32)})
    with pytest.raises(ParityFailed, match="of 6 canaries of .* differ under CPUExecutionProvider"):
        switched.check_canaries()


def test_the_program_of_a_folder_asks_them_without_safetykit(folder):
    command = [sys.executable, folder / PROGRAM, "--canary"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["differs"] for line in done.stdout.splitlines()] == [None] * 6
    alone = program().Model(folder)
    decoder = alone.decoder
    alone.decoder = lambda feeds: decoder({**feeds, "safetykit.enabled": np.array(0, np.float32)})
    assert any(alone.differs(one) for one in alone.canaries())
    assert all(program().Model(folder, base=True).differs(one) for one in alone.canaries())
    changed(folder, lambda canaries: canaries[1].update(refused=not canaries[1]["refused"]))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5 and "it is" in json.loads(done.stdout.splitlines()[1])["differs"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.update(risk=one["risk"] + 2 * one["risk_within"]), "1: the risk is"),
        (lambda one: one.update(refused=not one["refused"]), "1: it is"),
        (lambda one: one.update(best=[[0, 1e3]], refused=one["refused"]), "1: the logit of token 0 is not 1000"),
        (lambda one: one.update(best=[[10**6, 1.0]]), "1: the logit of token 1000000"),
        (lambda one: one.update(tokens=[1, 2, 3]), "1: the answer begins"),
        (lambda one: one.update(risk=float("nan")), "1: the risk is"),
    ],
)
def test_whatever_differs_is_named(folder, change, said):
    changed(folder, lambda canaries: change(canaries[0]))
    with pytest.raises(ParityFailed, match=f"1 of 6 .*{said}") as failed:
        asked(folder)
    assert failed.value.exit_code == 5


def test_damaged_canaries_are_refused(folder):
    changed(folder, lambda canaries: canaries.clear())
    with pytest.raises(InvalidArtifact, match="canary.json is not valid"):
        asked(folder)
    (folder / LAYOUT.canary).write_text("[")
    sealed(folder)
    with pytest.raises(InvalidArtifact, match="canary.json is not valid: it is not JSON"):
        asked(folder)


def test_without_canaries_there_is_nothing_to_ask(folder, base_folder):
    (folder / LAYOUT.canary).unlink()
    sealed(folder)
    for one in (folder, base_folder):
        with pytest.raises(UsageError, match="holds no canaries"):
            asked(one)


def test_not_a_number_is_no_risk(canary_export):
    """A runtime whose states overflow gives NaN: that is no risk within the tolerance."""
    model = OnnxVLM.from_pretrained(canary_export)
    decoder = model._decoder
    run, names = decoder.run, [value.name for value in decoder.get_outputs()]

    def overflown(outputs, feeds):
        found = list(run(outputs, feeds))
        found[names.index("risk_score")] = np.full_like(found[names.index("risk_score")], np.nan)
        return found

    decoder.run = overflown
    with pytest.raises(ParityFailed, match="6 of 6"):
        model.check_canaries()


def test_canaries_are_read_strictly():
    with pytest.raises(ValueError, match="extra"):
        Canaries.model_validate({"telling": 0, "canaries": [{"prompt": "?", "more": 1}]})


def test_a_graph_that_states_other_tensors_of_its_detector_is_refused(folder):
    manifest = read_manifest(folder)
    assert manifest.detector_state.sites == ("decoder.layers.1",)
    state = manifest.detector_state.model_copy(update={"tensors": "0" * 64})
    write_manifest(manifest.model_copy(update={"detector_state": state}), folder)
    with pytest.raises(InvalidArtifact, match="do not state the same detector"):
        OnnxVLM.from_pretrained(folder)
