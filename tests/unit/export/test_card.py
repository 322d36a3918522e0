"""The card: a pure function of the folder's JSON files, and what it says."""

from __future__ import annotations

import json

import pytest
import yaml
from export_folder import BASE, comparison, documents, manifest, records, write_folder
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from safetykit.adapters.artifact.manifest import AdapterInfo, DetectorInfo
from safetykit.adapters.errors import UsageError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.export.document.card import check_card, render_card, write_card
from safetykit.export.document.figures import LATENCY
from safetykit.export.document.sections.sweep import SweepTable
from safetykit.export.manifest import GRAPHS, LAYOUT, GraphInfo
from safetykit.export.parity.comparison import Comparison
from safetykit.toolkit.sweep.trials import Figures, Sweep, Trial, preference


def test_rendering_twice_gives_the_same_bytes(folder):
    before = [(folder / name).read_bytes() for name in (LAYOUT.card, LAYOUT.report, LAYOUT.manifest)]
    write_card(folder)
    assert before == [(folder / name).read_bytes() for name in (LAYOUT.card, LAYOUT.report, LAYOUT.manifest)]


def test_markup_in_a_manifest_is_text_in_its_documents(tmp_path):
    tag = "<script>alert(1)</script>"
    info = manifest().adapters[0]
    said = {
        "method": tag,
        "variant": tag,
        "sign_convention": tag,
        "hyperparameters": {tag: tag, "layers": [tag]},
        "data": {"sha256": "cd" * 32, "counts": {tag: 1}},
        "versions": {tag: tag},
    }
    bad = AdapterInfo.model_validate({**info.model_dump(), **said})
    items = tuple(item.model_copy(update={"op": tag, "site": tag}) for item in manifest().interventions)
    values = {"adapters": (bad,), "interventions": items, "versions": {tag: tag}, "updates": (tag,)}
    base = BASE.model_copy(update={"architecture": tag})
    files = {name: value for name, value in documents().items() if name != "card.json"}
    value = files[LAYOUT.evaluation].model_dump(mode="json")
    value["dataset"] = value["before"]["model"] = value["after"]["model"] = tag
    value["after"]["decisions"][0]["text"] = tag
    folder = write_folder(tmp_path / "export", {**files, LAYOUT.evaluation: value}, base=base, **values)
    write_card(folder)
    for name in (LAYOUT.card, LAYOUT.report):
        assert "<script" not in (folder / name).read_text(), name
    check_card(folder)


@pytest.mark.slow
def test_a_document_added_later_enters_the_card(tmp_path):
    files = documents()
    late = files.pop(LATENCY)
    folder = write_folder(tmp_path / "export", files)
    write_card(folder)
    assert "no `latency.json`" in (folder / LAYOUT.card).read_text()
    (folder / LATENCY).write_text(late.model_dump_json())
    write_card(folder)
    check_card(folder)
    assert "no `latency.json`" not in (folder / LAYOUT.card).read_text()


def test_there_is_no_card_of_a_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="no export folder"):
        render_card(tmp_path / "nothing")


def test_the_front_matter_is_a_valid_model_index_equal_to_the_json(folder):
    text = (folder / LAYOUT.card).read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == ModelCard(text).data.to_dict()
    assert header["base_model"] == "tiny-vlm" and header["base_fingerprint"] == BASE.fingerprint
    assert header["license"] == "apache-2.0" and header["pipeline_tag"] == "image-text-to-text"
    _, results = model_index_to_eval_results(header["model-index"])
    evaluation = json.loads((folder / LAYOUT.evaluation).read_text())
    stated = {(item.dataset_config, item.metric_type): item for item in results}
    counted = {
        (row["group"], metric): rate for row in evaluation["after"]["rows"] for metric, rate in row["metrics"].items()
    }
    assert stated.keys() == counted.keys()
    for key, rate in counted.items():
        assert stated[key].metric_value == rate["rate"]
        assert (stated[key].metric_args["n"], stated[key].metric_args["high"]) == (rate["n"], rate["high"])


def test_without_a_stated_base_the_card_uses_the_name_it_was_evaluated_under(tmp_path):
    files = documents()
    del files["card.json"]
    text = render_card(write_folder(tmp_path / "export", files))
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["base_model"] == "tiny-vlm" and header["license"] == "other"
    assert "it was not given to safetykit" in text


def test_missing_documents_are_said_to_be_missing(tmp_path):
    text = render_card(write_folder(tmp_path / "export", {}))
    for name in (LAYOUT.evaluation, LAYOUT.parity, LATENCY):
        assert f"Not measured: this folder holds no `{name}`." in text
    assert "No sweep came with this adapter" in text
    assert "Nothing is known about its effect on answers" in text
    assert "%" not in text.split("## In short")[1].split("Brackets")[0]
    assert "model-index" not in text


@pytest.mark.parametrize(
    ("name", "path", "old", "new"),
    [
        (LAYOUT.parity, ("checks", 2, "error"), "9.75e-06", 1.25e-5),
        (LAYOUT.parity, ("flips", 0, "margin"), "4.5e-07", 6.5e-7),
        (LATENCY, ("prefill", "ratio", "value"), "0.993", 1.234),
        (LATENCY, ("rounds",), "40 interleaved", 90210),
        ("sweep.json", ("undefended", "attack_success"), "84.4%", 0.765),
    ],
)
def test_a_changed_figure_moves_in_the_card(tmp_path, name, path, old, new):
    files = documents()
    if hasattr(files[name], "model_dump"):
        files[name] = files[name].model_dump(mode="json")
    before = render_card(write_folder(tmp_path / "before", files))
    place = files[name]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    if "error" in path:
        place["furthest"] = [new, 0, 1]
    after = render_card(write_folder(tmp_path / "after", files))
    spelled = f"{100 * new:.1f}%" if name == "sweep.json" else f"{new:.5g}"
    assert old in before and before.count(old) > after.count(old)
    assert spelled in after and spelled not in before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0.4, 0.02, 0.95), (0.1, 0.3, 0.9), (1.0, 0.0, 0.96)], "the chosen one has the lowest attack success (40.0%"),
        ([(0.4, 0.1, 0.95), (0.1, 0.3, 0.9), (1.0, 0.0, 0.96)], "none that stops attacks kept the allowed cost"),
        ([(1.0, 0.02, 0.95), (1.0, 0.0, 0.96)], "none stopped an attack"),
    ],
)
def test_a_sweep_is_told_as_the_fit_chose(tmp_path, rows, said):
    undefended = Figures(1.0, 0.0, 0.96)
    trials = [Trial(VLMGuard(alpha=float(at + 1)), Figures(*row)) for at, row in enumerate(rows)]
    swept = Sweep.over(undefended, trials)
    table = SweepTable.model_validate(json.loads(json.dumps(swept.table())))
    wanted = sorted(swept.trials, key=lambda trial: preference(trial, undefended))
    assert [trial["alpha"] for trial in table.leading(len(rows))] == [trial.setting.alpha for trial in wanted]
    text = render_card(write_folder(tmp_path / "export", {**documents(), "sweep.json": swept.table()}))
    others = {"lowest attack success", "none that stops attacks", "none stopped an attack"}
    assert said in text and sum(other in text for other in others) == 1


def test_attack_success_never_stands_without_over_refusal(folder):
    body = (folder / LAYOUT.card).read_text().split("## Evaluation")[1]
    for line in body.splitlines():
        if "attack success" in line and line.startswith("|"):
            assert "over-refusal" in line


def test_carriers_of_no_fit_are_named(folder):
    text = (folder / LAYOUT.card).read_text()
    assert "In no fit: text+image, typographic." in text
    assert "| typographic (in no fit) |" in text and "| image (in no fit) |" not in text


def test_a_model_organism_is_called_that_only_where_it_is_one(tmp_path, folder):
    assert (folder / LAYOUT.card).read_text().count("odel organism") == 2
    files = documents()
    files["config.json"] = {}
    assert "odel organism" not in render_card(write_folder(tmp_path / "large", files))


def test_the_wrong_base_override_is_loud(tmp_path, folder):
    text = render_card(write_folder(tmp_path / "wrong", documents(), wrong_base_allowed=True))
    assert "**WARNING: wrong base allowed.**" in text.split("## In short")[0]
    assert "rong base" not in (folder / LAYOUT.card).read_text()


def test_text_of_others_cannot_break_out_of_its_cell(tmp_path):
    info = manifest().adapters[0].model_copy(update={"variant": "a|b\n# <script>`x`</script>"})
    text = render_card(write_folder(tmp_path / "export", documents(), adapters=(info,)))
    assert "<script>" not in text and "\n# <" not in text
    assert "a\\|b \\# &lt;script&gt;\\`x\\`" in text


def test_a_comparison_is_of_the_same_records():
    good = comparison()
    with pytest.raises(UsageError, match="other records"):
        Comparison.of(good.before, good.after, records()[1:], "planted")


def test_a_failed_check_is_shown_as_failed(tmp_path):
    files = documents()
    report = json.loads(files[LAYOUT.parity].model_dump_json())
    report["checks"][0].update(error=1.0, furthest=[1, 0, 1], passed=False)
    files[LAYOUT.parity] = {**report, "passed": False}
    text = render_card(write_folder(tmp_path / "export", files))
    assert "| parity with PyTorch | | FAILED" in text and "| **NO** |" in text


def test_who_deploys_it_comes_first(folder):
    first = (folder / LAYOUT.card).read_text().split("\n---\n")[1].split("## In short")[0]
    for said in (
        'pip install -c constraints.txt ".[cpu]"',
        "safetykit run .",
        "OnnxVLM.from_pretrained",
        "parity passed under CPUExecutionProvider",
        "`decoder.onnx`",
        "in the model's own words",
        "export again; `--mode hot-swap`",
        "`safetykit export MODEL --onnx -o base`",
        "[below](#limits)",
    ):
        assert said in first
    assert len(first.splitlines()) < 50  # one screen


def test_a_detector_says_when_it_refuses_and_who_must(tmp_path):
    detector = DetectorInfo(threshold=1.25, refusal="no .", refusal_token=3)
    text = render_card(write_folder(tmp_path / "runtime", documents(), detector=detector))
    assert (
        "above a risk of 1.25 (log-odds, output `risk_score`) the answer is `no .`; safetykit's runtime does so, other"
        in text
    )
    text = render_card(write_folder(tmp_path / "graph", documents(), detector=detector, enforce=True))
    assert "`no .`; the graph forces it" in text


def test_parameters_that_can_be_swapped_and_ops_that_can_be_switched_off_are_named(tmp_path):
    graphs = {name: GraphInfo(inputs=("x", "safetykit.enabled"), outputs=("y",)) for name in GRAPHS}
    text = render_card(write_folder(tmp_path / "export", documents(), mode="hot-swap", graphs=graphs))
    assert "`safetykit run . --swap ADAPTER`" in text and "feed `safetykit.enabled` = 0, or serve" in text


def test_an_export_without_compared_decisions_says_so(tmp_path, folder):
    files = documents()
    report = files[LAYOUT.parity].model_dump(mode="json")
    report["checks"] = [item for item in report["checks"] if item["kind"] != "decisions"]
    text = render_card(write_folder(tmp_path / "exact", {**files, LAYOUT.parity: report}))
    assert "**No decision was compared:** The export was made without records." in text.split("## Deploying")[0]
    report["warnings"] = ["No decision was compared: weights are rounded."]
    text = render_card(write_folder(tmp_path / "rounded", {**files, LAYOUT.parity: report}))
    assert "**WARNING: no decision was compared.** Weights are rounded." in text and "without records" not in text
    assert "decision was compared" not in (folder / LAYOUT.card).read_text()


def test_a_detector_of_another_model_warns(tmp_path):
    text = render_card(write_folder(tmp_path / "export", documents(), uncorrected_detector_allowed=True))
    assert "**WARNING: detector not fitted under the correctors beside it.**" in text.split("## Deploying")[0]


def test_an_unmodified_export_claims_no_adapter(tmp_path):
    files = {name: value for name, value in documents().items() if name not in ("sweep.json", "spectra.json")}
    text = render_card(write_folder(tmp_path / "export", files, adapters=(), interventions=(), mode="base"))
    first = text.split("## In short")[0]
    assert "unmodified" in first and "swap" not in first and "no decision" not in first
