"""TGA's settings and what a fit makes of an alignment; the alignment itself is tested in the toolkit."""

from __future__ import annotations

import pytest
import torch

from safetykit.adapters.artifact.manifest import BaseInfo, DataInfo
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import UsageError
from safetykit.adapters.tga.settings import TGA, Aligned


class PlantedSource:
    """A source whose alignment is known."""

    def __init__(self, n_layers: int = 12) -> None:
        self.base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=n_layers, d_model=4)
        self.data = DataInfo(sha256="1" * 64, counts={"captions": 3, "turns": 6})
        self.asked: list[TGA] = []

    def align(self, settings: TGA) -> Aligned:
        self.asked.append(settings)
        update = WeightUpdate("projector.weight", {"value": torch.eye(4)})
        return Aligned((update,), {"seconds": 1.0}, {"4": {"before": {}, "after": {}}})


def test_a_fit_is_the_updates_with_settings_data_and_curve():
    source, settings = PlantedSource(), TGA(variant="projector", layers=(5, 4), steps=7, seed=3)
    adapter = settings.fit(source)
    assert source.asked == [settings]
    assert torch.equal(adapter.updates[0].tensors["value"], torch.eye(4))
    assert not adapter.interventions and adapter.detector is None
    assert adapter.info.method == "tga" and adapter.info.variant == "projector"
    assert adapter.info.hyperparameters["layers"] == [4, 5] and adapter.info.hyperparameters["steps"] == 7
    assert adapter.info.seed == 3 and adapter.info.data == source.data
    assert {"peft", "accelerate"} <= set(adapter.info.versions)
    assert set(adapter.attachments) == {"training", "alignment"}


@pytest.mark.parametrize(("n_layers", "wanted"), [(8, range(2, 8)), (32, range(8, 32)), (1, range(1))])
def test_without_layers_all_from_a_quarter_of_the_depth_on_are_aligned(n_layers, wanted):
    assert TGA().layers_of(n_layers) == tuple(wanted)


def test_the_learning_rate_belongs_to_the_variant_unless_given():
    assert TGA(variant="lora").rate != TGA(variant="projector").rate
    assert TGA(variant="lora", lr=0.5).rate == 0.5
    assert TGA().fit(PlantedSource()).info.hyperparameters["lr"] == TGA().rate


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "adapter"}, "variant cannot be 'adapter'. It is projector, low-rank"),
        ({"guide_weight": -1.0}, "guide_weight cannot be -1.0. It is at least 0"),
        (
            {"guide_weight": 0, "request_weight": 0, "opening_weight": 0, "ce_weight": 0},
            "All weights of the loss are 0",
        ),
        ({"steps": 0}, "steps cannot be 0. It is at least 1"),
        ({"rank": 0}, "rank cannot be 0. It is at least 1"),
        ({"lr": 0.0}, "lr cannot be 0.0. It is above 0"),
        ({"variant": "closed-form", "ridge": -1.0}, "ridge cannot be -1.0"),
        ({"shuffled": 1.5}, "shuffled cannot be 1.5. It is at most 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(UsageError) as error:
        TGA(**changes)
    assert words in str(error.value)


@pytest.mark.parametrize(("layers", "words"), [((), "layers names nothing"), ((12,), "does not exist")])
def test_layers_that_do_not_exist_are_refused_before_training(layers, words):
    source = PlantedSource()
    with pytest.raises(UsageError, match=words):
        TGA(layers=layers).fit(source)
    assert not source.asked
