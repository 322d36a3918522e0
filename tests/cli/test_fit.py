"""Fits through the real command line, on a random model with few records."""

import json

import pytest

from safetykit import cli
from safetykit.adapters import Adapter
from safetykit.adapters.artifact.correctors import describe_correctors

WORDS = ("apple", "dagger", "bus", "beer", "cat", "bomb")


@pytest.fixture
def fit(random_checkpoint, tmp_path):
    """`safetykit fit METHOD` on six text records of each label and split."""
    rows = [
        {
            "id": f"{split}{label}{index}",
            "prompt": f"how do i use a {word} ?" if label == "harmful" else f"what is a {word} ?",
            "label": label,
            "split": split,
            "response": "x",
        }
        for split in ("fit", "calibration")
        for index, word in enumerate(WORDS)
        for label in ("harmful", "harmless")
    ]
    data = tmp_path / "records.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def run(method, *options, out="adapter", data=data):
        call = ["fit", method, random_checkpoint, "--data", data, "-o", tmp_path / out, *options]
        with pytest.raises(SystemExit) as caught:
            cli.main([str(part) for part in call])
        assert caught.value.code == 0
        return Adapter.load(tmp_path / out)

    return run


def test_a_sweep_of_vlm_guard_chooses_and_keeps_its_table(fit, tmp_path):
    given = ("--variant", "orthogonal", "--layers", "3", "--direction", "mean", "--rank", "1")
    adapter = fit("vlm-guard", "--sweep", *given)
    table = adapter.attachments["sweep"]
    assert len(table["trials"]) == 1
    assert adapter.info.hyperparameters["variant"] == "orthogonal"
    assert adapter.info.hyperparameters["scope"] == "all"
    assert not list(tmp_path.glob(".*")), "the journal is gone"


def test_a_sweep_of_care_chooses_and_keeps_its_table(fit):
    given = ("--variant", "corrected", "--layers", "3", "--k", "2", "--modalities", "textual", "--site", "block")
    adapter = fit("care", "--sweep", *given, "--contrast", "label", "--fusion", "sequential", "--alpha", "1")
    assert {trial["modalities"] for trial in adapter.attachments["sweep"]["trials"]} == {"textual"}
    assert adapter.info.hyperparameters["rank"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sasa", "one-pass"])
def test_six_text_records_of_each_label_suffice_for_a_detector(fit, method, capsys):
    adapter = fit(
        method, "--fused-layer", "4", *(("--safety-layer", "2") if method == "sasa" else ()), "--refusal", "no"
    )
    assert adapter.detector.refusal == "no"
    assert adapter.info.hyperparameters["corrected_by"] == []
    assert "reading states ...\nfitting and measuring the probe ..." in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_applied_while_fitting_is_recorded_for_every_method_that_takes_it(fit, tmp_path, random_checkpoint):
    fit("vlm-guard", "--layers", "1", out="guard")
    recorded = describe_correctors([tmp_path / "guard"])
    chosen = ("--fused-layer", "4", "--refusal", "no")
    adapter = fit("one-pass", *chosen, "--with", tmp_path / "guard", out="probe")
    assert adapter.info.hyperparameters["corrected_by"] == recorded
    with pytest.raises(SystemExit) as caught:
        cli.main(["index", "build", "reference", "--model", str(random_checkpoint), "-o", str(tmp_path / "index")])
    assert caught.value.code == 0
    options = ("--index", tmp_path / "index", "--with", tmp_path / "guard", "--k", "1")
    adapter = fit("retrieval", *options, out="retrieval", data="reference")
    assert adapter.info.hyperparameters["corrected_by"] == recorded
