"""`safetykit calibrate`, as it is typed; its options act in the cases of command_cases.py."""

from dataclasses import replace

import pytest
import torch

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import DetectorInfo

THINGS = 100


def records():
    return [
        {
            "id": f"{label}{at}",
            "prompt": str(at),
            "response": "yes",
            "label": label,
            "split": "calibration",
            "group": f"g{at}",
        }
        for at in range(THINGS)
        for label in ("harmless", "harmful")
    ]


@pytest.fixture
def typed(refused, random_checkpoint, adapter_folder, data):
    def run(*options, adapter=adapter_folder):
        path = data(records())
        return refused("calibrate", random_checkpoint, "--adapter", adapter, "--data", path, "-o", "out", *options)

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "There is no budget to keep. Give --max-over-refusal or --max-utility-loss."),
        (("--confidence", 0.8), "--confidence does nothing with --max-over-refusal left out"),
        (("--max-over-refusal", 0.01), "takes at least 247 calibration groups at confidence 0.9, by record"),
        (("--max-over-refusal", 0.001, "--budget-by", "group"), "by group; 100 are tested"),
        (("--max-utility-loss", 0.1, "--budget-by", "category"), "name no category"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_weights_are_read(typed, options, message):
    given = ("--budget-by", "record") if "record" in message else ()
    assert message in " ".join(typed(*options, *given).split())


def test_an_adapter_without_threshold_and_strength_is_refused(typed, adapter_folder, tmp_path):
    item = Intervention(
        "TargetSteering",
        Site.block(2),
        "last",
        "prefill",
        {
            "basis": torch.eye(128)[:, :1],
            "mean": torch.zeros(128),
            "gate": torch.ones(128),
            "threshold": torch.tensor(0.0),
            "alpha": torch.tensor(1.0),
            "target": torch.ones(128),
        },
    )
    loaded = Adapter.load(adapter_folder)
    folder = replace(loaded, interventions=(item,)).save(tmp_path / "target")
    said = typed("--max-over-refusal", 0.2, adapter=folder)
    assert "has neither a threshold to move nor a strength to scale: TargetSteering at decoder.layers.2." in said


@pytest.fixture
def detector(adapter_folder, tmp_path):
    probe = Intervention(
        "LinearProbe", Site.block(2), "last", "prefill", {"weight": torch.ones(128), "bias": torch.tensor(0.0)}
    )
    shown = DetectorInfo(threshold=0.0, refusal="sorry.", refusal_token=1)
    return replace(Adapter.load(adapter_folder), interventions=(probe,), detector=shown).save(tmp_path / "detector")


@pytest.mark.parametrize("option", ["--with", "--after"])
def test_a_corrector_is_not_moved_under_the_detector_that_was_fitted_with_it(typed, detector, option):
    said = " ".join(typed("--max-over-refusal", 0.2, option, detector).split())
    assert "at another strength it would judge states that it has never seen" in said
    assert "--with out -o DETECTOR" in said


def test_what_does_not_belong_together_is_refused_without_an_option_that_is_not_there(
    typed, refused, detector, adapter_folder, random_checkpoint, data, tmp_path
):
    budget = ("--max-over-refusal", 0.2)
    said = typed(*budget, "--with", detector, adapter=detector)
    assert "both decide when to refuse" in said and "loading" not in said
    said = " ".join(typed(*budget, "--with", adapter_folder, adapter=detector).split())
    assert "states that it has never seen" in said and "--allow" not in said
    loaded = Adapter.load(adapter_folder)
    base = loaded.info.base.model_copy(update={"fingerprint": "1" * 64})
    other = replace(loaded, info=loaded.info.model_copy(update={"base": base})).save(tmp_path / "other")
    typed = ("calibrate", random_checkpoint, "--adapter", other, "--data", data(records()), "-o", "out", *budget)
    said = " ".join(refused(*typed, code=4).split())
    assert "was fitted on model 111111111111" in said and "--allow" not in said
