"""`safetykit diagnose` as a user meets it."""

import xml.etree.ElementTree as ElementTree

import pytest
from drawing import drawn
from workshop import safetykit

from safetykit.toolkit.diagnosis import ChannelMap

pytestmark = pytest.mark.slow

OPTIONS = ("--pairs", "8", "--neurons", "4", "--batch-size", "8")


@pytest.fixture(scope="module")
def done(planted_folder, planted_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "map"
    with drawn():
        done = safetykit("diagnose", planted_folder, "--data", planted_data, "-o", folder, *OPTIONS)
    assert done.code == 0, done.err
    return done


def test_the_folder_holds_the_map_and_every_plot_twice(done):
    out = done.path
    found = ChannelMap.load(out)
    assert set(found.info.effects) == {"textual", "visual"}
    names = {path.stem for path in out.glob("*.svg")}
    assert names == {path.stem for path in out.glob("*.png")}
    assert names >= {"effects-textual", "effects-visual", "neurons-visual", "windows", "separability", "rise"}
    for path in out.glob("*.svg"):
        assert ElementTree.fromstring(path.read_text()).get("aria-label")
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(out.parent.glob(".*"))  # no journal and no half-written folder is left


def test_the_cost_is_on_stderr_and_the_map_is_not_overwritten(done, planted_folder, planted_data):
    assert "forward and" in done.err and "backward passes" in done.err
    again = safetykit("diagnose", planted_folder, "--data", planted_data, "-o", done.path, *OPTIONS)
    assert again.code == 2
    assert "--overwrite" in again.err


def test_a_person_reads_the_layers_and_the_effects(done):
    assert "critical layers, visual harm" in done.out
    for words in ("safety layer", "layers to align", "skipped layers", "foremost neurons"):
        assert words in done.out
    assert f"--map {done.path}" in done.out + done.err


def test_a_budget_too_small_is_refused_with_the_least_that_works(planted_folder, planted_data, tmp_path):
    done = safetykit("diagnose", planted_folder, "--data", planted_data, "-o", tmp_path / "map", "--budget", "20")
    assert done.code == 2
    assert "Pass --budget" in done.err
    assert not (tmp_path / "map").exists()
