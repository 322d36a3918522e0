"""From a diagnosis to fits that read its map, on the reference VLM, as a user types it."""

import pytest

from safetykit import cli
from safetykit.adapters import Adapter
from safetykit.toolkit.diagnosis import ChannelMap

pytestmark = pytest.mark.slow


def safetykit(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture(scope="module", autouse=True)
def few_records(workshop):
    with workshop.few_records():
        yield


@pytest.fixture(scope="module")
def channels(workshop):
    return workshop["map"]


def fitted(method, channels, out, *options):
    data = ("--data", "reference", "--map", channels, "-o", out)
    assert safetykit("fit", method, "reference:mild", *data, *options) == 0
    return Adapter.load(out)


def test_sasa_takes_its_two_layers_from_the_map(channels, tmp_path):
    adapter, found = fitted("sasa", channels, tmp_path / "sasa"), ChannelMap.load(channels)
    assert (adapter.branch.safety.layer, adapter.branch.fused.layer) == (found.safety_layer, found.fused_layer)


def test_care_takes_the_layers_of_each_modality_and_carries_the_map(channels, tmp_path):
    adapter = fitted("care", channels, tmp_path / "care", "--map-layers", "2", "--fusion", "adaptive")
    found = ChannelMap.load(channels)
    settings = adapter.info.hyperparameters
    assert tuple(settings["layers"]) == found.layers_for("visual", 2)
    assert tuple(settings["textual_layers"]) == found.layers_for("textual", 2)
    assert adapter.attachments["diagnosis"] == found.info.model_dump(mode="json")


def test_tga_takes_the_layers_to_align(channels, tmp_path):
    adapter = fitted("tga", channels, tmp_path / "tga", "--steps", "2")
    assert tuple(adapter.info.hyperparameters["layers"]) == ChannelMap.load(channels).align_layers


@pytest.mark.parametrize("method", ["sasa", "care", "tga"])
def test_the_map_of_another_model_is_refused(method, channels, tmp_path, capsys):
    arguments = ("--data", "reference", "--map", channels, "-o", tmp_path / "out")
    assert safetykit("fit", method, "reference:severe", *arguments) == 4
    assert "The channel map was made for model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layers_are_named_by_an_option_or_by_the_map(channels, tmp_path, capsys):
    arguments = ("--data", "reference", "--map", channels, "-o", tmp_path / "out", "--layers", "1")
    assert safetykit("fit", "tga", "reference:mild", *arguments) == 2
    assert "--layers and --map both name the layers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
