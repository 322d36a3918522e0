"""What a parity report says: limits, flips and their margins, and who may accept them."""

import numpy as np
import pytest
from spoiling import ITEMS, spoilt_exports

from safetykit.adapters.errors import InvalidArtifact, ParityFailed, UsageError
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.gap import Gap
from safetykit.export.parity.report import ParityReport, find_flips
from safetykit.export.parity.tolerances import TOLERANCES, Tolerance
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import Decision


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return spoilt_exports(vlm, base_folder, tmp_path)


def test_half_of_the_compared_rows_open_a_gate():
    records = [Record(id=str(at), prompt="how " * (at + 1), label="harmless", split="test") for at in range(10)]
    prompts = [request.prompt for request in parity_requests(records, {"8", "9"})["4 rows padded, text"]]
    assert sorted(prompts.count("how " * (at + 1)) for at in (8, 9)) == [1, 1]
    assert len({len(prompt) for prompt in prompts}) == 4


def test_nan_and_infinity_never_pass():
    assert not Tolerance(absolute=1e9, relative=1e9).passes(float("nan"), 1.0)
    assert np.isnan(Gap.between(np.array([1.0]), np.array([np.nan])).error)
    assert Gap.between(np.array([1.0]), np.array([np.inf])).error == np.inf
    assert np.isnan(Gap(1.0, 1.0, 1).join(Gap(float("nan"), 1.0, 1)).error)


def test_reports_survive_being_written(tmp_path):
    report = ParityReport(
        precision="fp32",
        providers=("CPUExecutionProvider",),
        steps=1,
        tolerances=TOLERANCES["fp32"],
        checks=(),
        passed=True,
    )
    report.write(tmp_path / "parity.json")
    assert ParityReport.read(tmp_path / "parity.json") == report
    (tmp_path / "parity.json").write_text("{}")
    with pytest.raises(InvalidArtifact):
        ParityReport.read(tmp_path / "parity.json")


def decision(number: int, outcome: str = "refused", **scores: float) -> Decision:
    return Decision(id=str(number), carrier="text", label="harmful", tags=(), text="", outcome=outcome, scores=scores)


def test_flips_are_listed_with_their_margin():
    ours = [decision(0, gate=0.25), decision(1, gate=-1.0), decision(2, "answered")]
    theirs = [decision(0, gate=-0.5), decision(1, gate=-1.1), decision(2, "refused")]
    gate, outcome = find_flips(ours, theirs)
    assert (gate.id, gate.what, gate.pytorch, gate.onnx, gate.margin) == ("0", "gate", "open", "closed", 0.25)
    assert (outcome.id, outcome.what, outcome.pytorch, outcome.onnx) == ("2", "outcome", "answered", "refused")


def test_a_missing_score_is_a_flip():
    (flip,) = find_flips([decision(0, gate=1.0)], [decision(0)])
    assert (flip.pytorch, flip.onnx) == ("open", "missing")


def test_decisions_about_other_records_are_refused():
    with pytest.raises(UsageError, match="different records"):
        find_flips([decision(0)], [decision(1)])


def test_a_flipped_answer_is_listed_with_the_gap_where_it_parts(vlm, base_folder, make_adapter):
    """The adapted model against the bare graphs, so that the answers really part."""
    prompts = ("what is this thing ?", "describe it .", "how to use this ?", "is this dangerous ?")
    records = [Record(id=str(at), prompt=prompt, label="harmless", split="test") for at, prompt in enumerate(prompts)]
    adapter = make_adapter(*ITEMS)
    theirs = [decision(at, "refused" if at == 2 else "answered") for at in range(4)]
    ours = [decision(at, "answered") for at in range(4)]
    bare = OnnxVLM.from_pretrained(base_folder)
    report = check_parity(vlm, bare, [adapter], records=records, decisions=(ours, theirs), steps=1, max_new_tokens=4)
    (flip,) = report.flips
    assert (flip.id, flip.what) == ("2", "outcome")
    assert flip.margin is not None and flip.margin > 0


def test_a_flip_is_accepted_only_by_somebody_who_says_so(vlm, export, make_adapter):
    adapter = make_adapter(*ITEMS)
    good, theirs = export(adapter), [decision(at, "refused" if at == 2 else "answered") for at in range(4)]
    both = ([decision(at, "answered") for at in range(4)], theirs)
    with pytest.raises(ParityFailed, match="first decisions .*error 1, limit 0") as failed:
        check_parity(vlm, good, [adapter], decisions=both, steps=1).require()
    assert "2 (outcome: answered → refused)" in failed.value.next_step and "--max-flips" in failed.value.next_step
    report = check_parity(vlm, good, [adapter], decisions=both, steps=1, max_flips=0.25)
    report.require()
    assert report.tolerances.flips == 0.25 and len(report.flips) == 1
    with pytest.raises(ParityFailed):
        check_parity(vlm, good, [adapter], decisions=both, steps=1, max_flips=0.24).require()
