"""Thresholds set again on the graphs that ship: as many records exceed them as the fitted ones before."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.errors import UsageError
from safetykit.export.foreign.weights import find_weights
from safetykit.export.manifest import LAYOUT
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.held import holding
from safetykit.export.parity.recalibrate import matching_threshold, recalibrated, thresholds, with_thresholds
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.detector import stated_detector
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.model.requests import Request

WANTED = 12  # of 40 records
WORDS = [
    "what",
    "is",
    "in",
    "the",
    "picture",
    "describe",
    "it",
    "this",
    "dangerous",
    "if",
    "so",
    "should",
    "one",
    "do",
    "about",
    "use",
    "thing",
    "how",
    "to",
]
GATES = (
    ("TargetSteering", "decoder.layers.0", "all", "both"),
    ("GatedSteering", "decoder.layers.2", "last", "prefill"),
)


def records(count: int, seed: int) -> list[Record]:
    random = np.random.default_rng(seed)
    prompts = [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]
    return [
        Record(id=str(at), prompt=prompt, label=("harmful", "harmless")[at % 2], split="calibration", response="so")
        for at, prompt in enumerate(prompts)
    ]


CALIBRATION = records(40, 0)
TEST = [record.model_copy(update={"id": f"test-{record.id}", "split": "test"}) for record in CALIBRATION]


@pytest.fixture
def fitted(vlm):
    """The same adapter with thresholds that `WANTED` calibration records exceed in PyTorch, each gate on its own."""

    def make(adapter: Adapter) -> Adapter:
        far = {name: value + 100 for name, value in thresholds([adapter]).items()}
        closed = with_thresholds([adapter], far)[0]
        scores = in_torch(vlm, closed)
        # A risk is no margin: its threshold is no part of it.
        levels = {name: values + (0 if name == "risk" else far[name]) for name, values in scores.items()}
        return with_thresholds([adapter], {name: matching_threshold(levels[name], WANTED, 0) for name in far})[0]

    return make


def in_torch(vlm, adapter: Adapter) -> dict[str, np.ndarray]:
    """Scores of the calibration records, one by one."""
    found: dict[str, list[float]] = {name: [] for name in thresholds([adapter])}
    with vlm.applied(adapter) as hooks:
        for record in CALIBRATION:
            vlm.prefill([Request(record.prompt)])
            for name in found:
                found[name].append(hooks.extras[name].item())
    return {name: np.array(values) for name, values in found.items()}


@pytest.fixture
def export(vlm, int4_folder, tmp_path):
    def run(adapter: Adapter, records=(), **options):
        given = {"precision": "int4", "base_onnx": int4_folder, "recalibrate": True, **options}
        return export_onnx(vlm, [adapter], tmp_path / "out", records=[*CALIBRATION, *records], **given)

    return run


@pytest.mark.parametrize(
    ("wanted", "fitted", "threshold"),
    [
        (1, 9.0, 3.5),
        (2, 9.0, 2.5),
        (2, 2.1, 2.1),
        (0, 9.0, 9.0),
        (0, 2.0, 4.0),
        (4, 0.0, 0.0),
        (4, 2.0, np.nextafter(1.0, 0.0)),
    ],
)
def test_as_many_scores_as_wanted_lie_above_the_threshold(wanted, fitted, threshold):
    scores = np.array([2.0, 4.0, 1.0, 3.0])
    assert matching_threshold(scores, wanted, fitted) == threshold
    assert (scores > threshold).sum() == wanted


def test_scores_that_all_move_one_way_take_the_threshold_along():
    scores = np.random.default_rng(0).normal(size=200)
    moved = matching_threshold(0.7 * scores - 3, int((scores > 0.4).sum()), 0.4)
    assert ((0.7 * scores - 3 > moved) == (scores > 0.4)).all()


@pytest.mark.slow
def test_a_detector_refuses_as_many_records_as_before(vlm, export, fitted, make_detector, tmp_path):
    detector = fitted(make_detector())
    (change,) = export(detector).manifest.recalibrated
    onnx_vlm = OnnxVLM.from_pretrained(tmp_path / "out")
    risks = [onnx_vlm.prefill_requests([Request(record.prompt)]).extras["risk"].item() for record in CALIBRATION]
    assert (change.what, change.records, change.wanted, change.above) == ("risk", 40, WANTED, WANTED)
    assert change.fitted == detector.detector.threshold != change.threshold
    assert change.above_fitted == (np.array(risks) > change.fitted).sum()
    assert change.threshold == pytest.approx(matching_threshold(np.array(risks), WANTED, 0), abs=1e-4)
    assert onnx_vlm.detector.threshold == change.threshold
    assert stated_detector(ir.load(tmp_path / "out" / LAYOUT.decoder)).info.threshold == change.threshold
    answers = onnx_vlm.generate([Request(record.prompt) for record in CALIBRATION], 1)
    assert sum(answer.refused for answer in answers) == WANTED


@pytest.mark.slow
def test_gates_open_as_often_as_before_as_if_each_were_alone(vlm, export, fitted, int4_folder, make_adapter):
    """The deeper gate is calibrated on states that the other one has not touched, as it was fitted."""
    adapter = fitted(make_adapter(*GATES))
    changes = export(adapter).manifest.recalibrated
    far = {name: value + 100 for name, value in thresholds([adapter]).items()}
    with holding(vlm, find_weights(vlm, ir.load(int4_folder / LAYOUT.decoder))):
        scores = in_torch(vlm, with_thresholds([adapter], far)[0])
    assert [change.what for change in changes] == ["0.score", "1.score"]
    for change in changes:
        values = scores[change.what] + far[change.what]
        # Not exactly: the graph rounds activations to 8 bits, PyTorch does not.
        assert change.threshold == pytest.approx(matching_threshold(values, WANTED, 0), abs=5e-3)
        assert abs((values > change.threshold).sum() - WANTED) <= 1
        assert change.wanted == change.above == WANTED


@pytest.mark.slow
def test_decisions_are_compared_with_those_of_the_fitted_threshold(vlm, export, fitted, make_detector):
    detector = fitted(make_detector())
    result = export(detector, max_flips=1, records=TEST, max_new_tokens=2)
    ours, theirs = ([decision.scores["risk"] for decision in side] for side in result.decisions)
    assert np.allclose(ours, in_torch(vlm, detector)["risk"] - detector.detector.threshold, atol=1e-4)
    assert sum(risk > 0 for risk in ours) == sum(risk > 0 for risk in theirs) == WANTED
    flipped = sum((a > 0) != (b > 0) for a, b in zip(ours, theirs, strict=True))
    assert sum(flip.what == "risk" for flip in result.parity.flips) == flipped


@pytest.mark.slow
def test_a_threshold_that_nothing_exceeds_stays(export, make_detector):
    detector = make_detector(threshold=100.0)
    (change,) = export(detector).manifest.recalibrated
    assert change.threshold == change.fitted == 100.0 and change.wanted == change.above == 0


@pytest.mark.slow
def test_parity_holds_only_with_the_thresholds_in_the_graph(vlm, export, fitted, make_detector, tmp_path):
    detector = fitted(make_detector())
    result = export(detector)
    onnx_vlm = OnnxVLM.from_pretrained(tmp_path / "out")
    own = with_thresholds([detector], {one.what: one.threshold for one in result.manifest.recalibrated})
    assert check_parity(vlm, onnx_vlm, own, steps=1).passed
    failed = [check for check in check_parity(vlm, onnx_vlm, [detector], steps=1).checks if not check.passed]
    assert [check.case for check in failed] == ["threshold and refusal"]


@pytest.mark.slow
def test_the_card_says_which_thresholds_are_not_the_fits(export, fitted, make_detector, tmp_path):
    export(fitted(make_detector()))
    text = (tmp_path / "out" / LAYOUT.card).read_text()
    assert "Thresholds were set again on these graphs" in text and "| `risk` |" in text
    assert "was set again on these graphs" in (tmp_path / "out/report.html").read_text()


def test_other_parameters_than_thresholds_are_left_alone(make_adapter, make_detector):
    stack = [make_adapter(*GATES), make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both"), *GATES)]
    assert set(thresholds([*stack, make_detector()])) == {"0.score", "1.score", "3.score", "4.score", "risk"}
    changed = with_thresholds([*stack, make_detector()], {"3.score": 7.0, "risk": 2.0})
    assert [adapter.info for adapter in changed[:2]] == [adapter.info for adapter in stack]
    before, after = ([item for adapter in some for item in adapter.interventions] for some in (stack, changed))
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        for name in old.tensors:
            assert torch.equal(old.tensors[name], new.tensors[name]) != (index == 3 and name == "threshold")
    assert float(after[3].tensors["threshold"]) == 7.0
    assert changed[2].detector == make_detector().detector.model_copy(update={"threshold": 2.0})


def test_a_recalibration_without_thresholds_or_records_is_refused(vlm, make_adapter, make_detector, tmp_path):
    plain = make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both"))
    with pytest.raises(UsageError, match="have no threshold"):
        recalibrated(vlm, [plain], lambda _: None, CALIBRATION)
    with pytest.raises(UsageError, match="have no threshold"):  # before anything is exported
        export_onnx(vlm, [plain], tmp_path / "out", recalibrate=True, records=CALIBRATION)
    with pytest.raises(UsageError, match="holds no record"):
        recalibrated(vlm, [make_detector()], lambda _: None, [])
    assert not (tmp_path / "out").exists()
