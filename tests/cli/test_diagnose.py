"""`safetykit diagnose` as a user meets it."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from planted_vlm import build_planted, write_records

from safetykit import cli
from safetykit.toolkit.diagnosis import ChannelMap

pytestmark = pytest.mark.slow

OPTIONS = ("--pairs", "8", "--neurons", "4", "--batch-size", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_planted(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


def safetykit(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture(scope="module")
def out(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "map"
    assert safetykit("diagnose", model, "--data", data, "-o", folder, *OPTIONS, "--json") == 0
    return folder


def test_the_folder_holds_the_map_and_every_plot_twice(out):
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


def test_json_is_the_map_and_the_cost_is_on_stderr(model, data, tmp_path, capsys):
    assert safetykit("diagnose", model, "--data", data, "-o", tmp_path / "map", *OPTIONS, "--json") == 0
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value.pop("map") == str(tmp_path / "map")
    assert f"--map {tmp_path / 'map'}" in value.pop("next")
    assert value == ChannelMap.load(tmp_path / "map").info.model_dump(mode="json")
    assert "forward and" in printed.err and "backward passes" in printed.err
    code = safetykit("diagnose", model, "--data", data, "-o", tmp_path / "map", *OPTIONS)
    assert code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_person_reads_the_layers_and_the_effects(model, data, tmp_path, capsys):
    assert safetykit("diagnose", model, "--data", data, "-o", tmp_path / "map", *OPTIONS) == 0
    text = capsys.readouterr().out
    assert "critical layers, visual harm" in text
    for words in ("safety layer", "layers to align", "skipped layers", "foremost neurons"):
        assert words in text


def test_a_budget_too_small_is_refused_with_the_least_that_works(model, data, tmp_path, capsys):
    code = safetykit("diagnose", model, "--data", data, "-o", tmp_path / "map", "--budget", "20")
    assert code == 2
    assert "Pass --budget" in capsys.readouterr().err
    assert not (tmp_path / "map").exists()
