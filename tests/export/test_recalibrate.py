"""Thresholds set again on the graphs that ship: the chosen share of harmless records lies above them there."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.adapter import Adapter
from safetykit.adapters.errors import UsageError
from safetykit.adapters.probe import threshold_at
from safetykit.export.adapt import copy_base
from safetykit.export.card import write_card
from safetykit.export.detector import stated_detector
from safetykit.export.evaluation import export_with_documents
from safetykit.export.foreign.weights import find_weights
from safetykit.export.held import holding
from safetykit.export.layout import LAYOUT, read_manifest
from safetykit.export.parity import check_parity
from safetykit.export.pipeline import export_onnx
from safetykit.export.quantise import quantise_decoder
from safetykit.export.recalibrate import recalibrated, thresholds, with_thresholds
from safetykit.export.runtime import OnnxVLM
from safetykit.toolkit.inputs import Request
from safetykit.toolkit.records import Record

RATE = 0.2
WORDS = "what is in the picture describe it this dangerous if so should one do about use thing how to".split()
GATES = (
    ("TargetSteering", "decoder.layers.0", "all", "both"),
    ("GatedSteering", "decoder.layers.2", "last", "prefill"),
)


def records(label: str, count: int, seed: int) -> list[Record]:
    random = np.random.default_rng(seed)
    prompts = [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]
    return [
        Record(id=f"{label}{at}", prompt=prompt, label=label, split="calibration", response="so")
        for at, prompt in enumerate(prompts)
    ]


HARMLESS = records("harmless", 40, 0)
CALIBRATION = [*HARMLESS, *records("harmful", 7, 1)]


def calibrated(adapter: Adapter, **options) -> Adapter:
    """An adapter whose thresholds say of themselves that they were set by a rate, and are far off."""
    info = adapter.info.model_copy(update={"hyperparameters": {"false_positive_rate": RATE, **options}})
    adapter = dataclasses.replace(adapter, info=info)
    return with_thresholds([adapter], {name: value + 50 for name, (value, _) in thresholds([adapter]).items()})[0]


@pytest.fixture(scope="module")
def int4_folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4") / "base"
    folder.mkdir()
    manifest = read_manifest(base_folder)
    copy_base(base_folder, folder, manifest)
    quantise_decoder(folder, manifest, block=16)
    return folder


def prefill(model, batch):
    """What the model says about records, read one by one."""
    return [model.prefill_requests([Request(record.prompt)]).extras for record in batch]


def test_a_detector_refuses_the_chosen_share_of_harmless_records_again(vlm, int4_folder, make_detector, tmp_path):
    detector = calibrated(make_detector())
    result = export_onnx(
        vlm, [detector], tmp_path / "out", precision="int4", base_onnx=int4_folder, recalibrate=CALIBRATION
    )
    onnx_vlm = OnnxVLM.from_pretrained(tmp_path / "out")
    risks = np.array([extras["risk"].item() for extras in prefill(onnx_vlm, HARMLESS)])
    (change,) = result.manifest.recalibrated
    assert change.what == "risk" and change.fitted == detector.detector.threshold
    assert change.threshold == pytest.approx(threshold_at(risks, np.zeros(40, bool), RATE), abs=1e-4)
    assert (change.records, change.above_fitted, change.above) == (40, 0, int((risks > change.threshold).sum()))
    assert RATE * 40 - 1 <= change.above <= RATE * 40
    assert result.manifest.detector.threshold == change.threshold
    assert stated_detector(ir.load(tmp_path / "out" / LAYOUT.decoder)).info.threshold == change.threshold
    answers = onnx_vlm.generate([Request(record.prompt) for record in HARMLESS], 1)
    assert sum(answer.refused for answer in answers) == change.above


def test_gates_open_for_the_chosen_share_as_if_each_were_alone(vlm, int4_folder, make_adapter, tmp_path):
    """The deeper gate is calibrated on states that the other one has not touched, as it was fitted."""
    adapter = calibrated(make_adapter(*GATES), gate="whitened")
    result = export_onnx(
        vlm, [adapter], tmp_path / "out", precision="int4", base_onnx=int4_folder, recalibrate=CALIBRATION
    )
    weights = find_weights(vlm, ir.load(int4_folder / LAYOUT.decoder))
    scores: dict[str, list[float]] = {"0.score": [], "1.score": []}
    with holding(vlm, weights), vlm.applied(adapter) as hooks:  # 50 above: both closed
        for record in HARMLESS:
            vlm.prefill([Request(record.prompt)])
            for name in scores:
                scores[name].append(hooks.extras[name].item())
    assert [change.what for change in result.manifest.recalibrated] == list(scores)
    for change in result.manifest.recalibrated:
        values = np.array(scores[change.what]) + change.fitted
        assert change.threshold == pytest.approx(np.quantile(values, 1 - RATE), abs=5e-4)
        assert change.above_fitted == 0 and abs(change.above - RATE * 40) <= 1


def test_decisions_are_compared_with_those_of_the_fitted_threshold(vlm, int4_folder, make_detector, tmp_path):
    """The fitted one refuses nobody here: whoever the export refuses has flipped, and the report says so."""
    result = export_onnx(
        vlm, [calibrated(make_detector())], tmp_path / "out", precision="int4", base_onnx=int4_folder, max_flips=1,
        recalibrate=CALIBRATION, records=HARMLESS, max_new_tokens=2,
    )  # fmt: skip
    refused = [flip for flip in result.parity.flips if flip.what == "risk"]
    assert {(flip.pytorch, flip.onnx) for flip in refused} == {("closed", "open")}
    assert len(refused) == result.manifest.recalibrated[0].above > 0


def test_parity_holds_only_with_the_thresholds_in_the_graph(vlm, int4_folder, make_detector, tmp_path):
    detector = calibrated(make_detector())
    result = export_onnx(
        vlm, [detector], tmp_path / "out", precision="int4", base_onnx=int4_folder, recalibrate=CALIBRATION
    )
    onnx_vlm = OnnxVLM.from_pretrained(tmp_path / "out")
    own = with_thresholds([detector], {one.what: one.threshold for one in result.manifest.recalibrated})
    assert check_parity(vlm, onnx_vlm, own, steps=1).passed
    failed = [check for check in check_parity(vlm, onnx_vlm, [detector], steps=1).checks if not check.passed]
    assert [check.case for check in failed] == ["threshold and refusal"]


def test_the_card_says_which_thresholds_are_not_the_fits(vlm, int4_folder, make_detector, tmp_path):
    export_onnx(
        vlm, [calibrated(make_detector())], tmp_path / "out", precision="int4", base_onnx=int4_folder,
        recalibrate=CALIBRATION, finish=lambda work, _: write_card(work),
    )  # fmt: skip
    text = (tmp_path / "out" / LAYOUT.card).read_text()
    assert "Thresholds were set again on these graphs" in text and "| `risk` |" in text and "20.0% were asked" in text
    assert "was set again on these graphs" in (tmp_path / "out/report.html").read_text()


def test_what_was_not_set_by_a_rate_is_left_alone(make_adapter, make_detector):
    plain, paper = make_adapter(*GATES), calibrated(make_adapter(*GATES), gate="paper")
    assert thresholds([plain, paper, make_detector()]) == {}
    second = calibrated(make_adapter(*GATES), gate="calibrated")
    assert set(thresholds([plain, second, calibrated(make_detector())])) == {"2.score", "3.score", "risk"}
    (first, changed) = with_thresholds([plain, second], {"3.score": 7.0})
    assert [float(item.tensors["threshold"]) for item in changed.interventions][1] == 7.0
    for before, after in zip([*plain.interventions, second.interventions[0]], first.interventions + changed.interventions):
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def test_a_recalibration_without_thresholds_or_records_is_refused(make_adapter, make_detector, tmp_path):
    with pytest.raises(UsageError, match="No threshold of these adapters"):
        recalibrated([make_adapter(*GATES)], lambda _: None, CALIBRATION)
    with pytest.raises(UsageError, match="holds no harmless record"):
        recalibrated([calibrated(make_detector())], lambda _: None, records("harmful", 3, 0))
    with pytest.raises(UsageError, match="--recalibrate needs records"):
        export_with_documents("nowhere", tmp_path / "out", [], recalibrate=True)
    assert not (tmp_path / "out").exists()
