"""A method in one file of another package: found by its entry point, fitted, baked, proven and on the card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safetykit.adapters import Adapter

SUPPORT = Path(__file__).parents[1] / "support"
WORDS = ("apple", "dagger", "bus", "beer")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where a package with the method is installed."""
    site = tmp_path_factory.mktemp("site")
    facts = site / "scaling_method-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: scaling-method\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[safetykit.methods]\nscaling = scaling_method:METHOD\n")
    (site / "scaling_method.py").write_text((SUPPORT / "scaling_method.py").read_text())
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "id": f"{split}{label}{word}",
            "prompt": f"how do i use a {word} ?" if label == "harmful" else f"what is a {word} ?",
            "label": label,
            "split": split,
            "response": "x",
        }
        for split in ("fit", "calibration", "test")
        for word in WORDS
        for label in ("harmful", "harmless")
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def made(installed, data, random_checkpoint, random_base, tmp_path_factory):
    """A folder with an adapter and its export, checked, and what the commands said, all in one process."""
    folder = tmp_path_factory.mktemp("made")
    adapter, export = folder / "adapter", folder / "export"
    mistaken = ("fit", "scaling", "nowhere", "--data", "nothing", "-o", folder / "x")
    fit = ("fit", "scaling", random_checkpoint, "--data", data, "-o", adapter, "--strength", "0.5", "--layer", "3")
    options = ("--adapter", adapter, "--data", data, "--base-onnx", random_base, "--parity-rows", "4")
    bake = ("export", random_checkpoint, *options, "-o", export)
    commands = (
        *("fit", "--help", "++", "fit", "scaling", "--help", "++"),
        *(*mistaken, "--scope", "visoin", "||", *mistaken, "--strength", "1.5", "||"),
        *(*fit, "++", *bake, "++", "card", export, "--check"),
    )
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "without.py"), "", *map(str, commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": installed},
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.slow
def test_it_is_listed_with_ours_and_its_settings_are_its_options(made):
    told = made[1].stdout
    assert "Scaling: hidden states drawn towards" in " ".join(told.split())
    assert "--strength" in told and "σ, the share of the way." in told and "safetykit fit scaling" in told


@pytest.mark.slow
def test_a_typo_is_refused_as_one_of_ours(made):
    folder, done = made
    assert "Did you mean 'vision'" in done.stderr
    assert "--strength cannot be 1.5" in done.stderr
    assert not (folder / "x").exists()


@pytest.mark.slow
def test_it_fits_bakes_passes_parity_and_has_its_section(made):
    folder, _ = made
    told = json.loads((folder / "adapter/manifest.json").read_text())
    assert told["info"]["hyperparameters"] == {"layer": 3, "strength": 0.5, "scope": "last"}
    export = folder / "export"
    assert json.loads((export / "parity.json").read_text())["passed"]
    card, report = (export / "README.md").read_text(), (export / "report.html").read_text()
    assert "**The distance.** Harmful texts lie" in card
    assert "<h3>Distance to harmless" in report and "<p>Harmful texts lie" in report


@pytest.mark.slow
def test_without_its_package_the_adapter_is_refused_by_its_op(made):
    with pytest.raises(Exception, match="Unknown op 'TowardsMean'"):
        Adapter.load(made[0] / "adapter")
