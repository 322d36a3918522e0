"""Budgets, as they are typed: every fit that can keep one takes all its options; what cannot be kept is refused."""

import json

import pytest
from grouped import THINGS, _picture, both_carriers, rows  # noqa: F401  one is a fixture

from safetykit.adapters.method import load
from safetykit.adapters.registry import methods

THRESHOLDS = {
    "hidden-detect": ("--layer", 1),
    "one-pass": ("--fused-layer", 1),
    "sasa": ("--safety-layer", 0, "--fused-layer", 1),
    "streaming-guard": ("--tokens", 2, "--rounds", 1, "--allow-constant-gate"),
}
SWEEPS = {name for name, method in methods().items() if method.sweep is not None}
UNITS = ("group", "category", "record", "group")


@pytest.fixture(scope="module")
def known(workshop):
    return workshop["tiny"]


@pytest.fixture
def fit(call, known, data, tmp_path):
    def run(method, *options, records=None, out="adapter", shown=("--json",)):
        refusal = ("--refusal", "sorry .") if "refusal" in methods()[method].takes else ()
        path = data(rows() if records is None else records)
        return call("fit", method, known, "--data", path, "-o", tmp_path / out, *refusal, *options, *shown)

    return run


def test_the_methods_that_set_a_threshold_are_known():
    assert set(THRESHOLDS) == {name for name, method in methods().items() if method.budgeted}


@pytest.mark.parametrize(("method", "unit"), list(zip(THRESHOLDS, UNITS, strict=True)))
def test_a_threshold_keeps_its_budget_and_the_manifest_says_so(fit, method, unit, tmp_path):
    given = ("--max-over-refusal", 0.3, "--max-utility-loss", 0.25, "--budget-by", unit, "--confidence", 0.8)
    code, out, err = fit(method, *THRESHOLDS[method], *given)
    assert code == 0, err
    value = json.loads(out)
    budget, recorded = value["budget"], value["hyperparameters"]
    assert (budget["unit"], budget["confidence"]) == (unit, 0.8)
    assert budget["groups"] == (2 * THINGS if unit == "record" else THINGS)
    assert [(one["what"], one["budget"]) for one in budget["kept"]] == [("over-refusal", 0.3), ("utility loss", 0.25)]
    assert all(one["observed"] <= one["bound"] <= one["budget"] for one in budget["kept"])
    assert value["calibration"][0]["false_positive_rate"] == pytest.approx(budget["kept"][0]["observed"])
    assert "false_positive_rate" not in recorded
    assert (recorded["max_over_refusal"], recorded["budget_by"], recorded["confidence"]) == (0.3, unit, 0.8)
    assert json.loads((tmp_path / "adapter" / "budget.json").read_text()) == budget


def test_a_larger_budget_or_less_confidence_refuses_more(fit, tmp_path):
    def refuses(out, *given):
        code, found, err = fit("hidden-detect", *given, out=out)
        assert code == 0, err
        return json.loads(found)["budget"]["kept"][0]["observed"]

    strict = refuses("a", "--max-over-refusal", 0.2)
    assert strict < refuses("b", "--max-over-refusal", 0.6)
    assert strict < refuses("c", "--max-over-refusal", 0.2, "--confidence", 0.2)
    assert strict == refuses("d", "--max-utility-loss", 0.2)


@pytest.mark.parametrize("method", sorted(SWEEPS))
def test_a_sweep_takes_a_budget_and_nothing_else_of_it_does(fit, method):
    code, _, err = fit(method, "--max-over-refusal", 0.3)
    assert code == 2 and "--max-over-refusal is kept by trying settings" in err and "Add --sweep." in err
    given = ("--sweep", "--max-utility-loss", 0.02, "--max-over-refusal", 0.9, "--confidence", 0.8)
    for unit, tested in (("group", 20), ("category", 20), ("record", 40)):
        code, _, err = fit(method, *given, "--budget-by", unit, records=both_carriers())
        whole = 2 * THINGS if unit == "record" else THINGS
        assert code == 2 and f"at confidence 0.8, by {unit}; {whole} are there, of which {tested} are tested." in err
        assert "A budget of 0.02 takes at least" in err and "loading" not in err


@pytest.mark.parametrize(
    ("options", "records", "message"),
    [
        (("--max-over-refusal", 0), None, "--max-over-refusal cannot be 0.0. It is above 0."),
        (("--max-utility-loss", 1), None, "--max-utility-loss cannot be 1.0. It is below 1."),
        (("--confidence", 0.9), None, "--confidence does nothing with --max-over-refusal left out"),
        (("--budget-by", "record"), None, "--budget-by does nothing with --max-over-refusal left out"),
        (
            ("--max-over-refusal", 0.1, "--budget-by", "thing"),
            None,
            "--budget-by cannot be 'thing'. It is group, category",
        ),
        (
            ("--max-over-refusal", 0.1, "--false-positive-rate", 0.1),
            None,
            "--false-positive-rate and --max-over-refusal both set the threshold. Leave out one of them.",
        ),
        (
            ("--max-over-refusal", 0.01),
            None,
            "A budget of 0.01 takes at least 247 calibration groups at confidence 0.9",
        ),
        (("--max-utility-loss", 0.1), rows(group=""), "name no group, and requests about one thing"),
        (("--max-utility-loss", 0.1), rows(group="one"), "The fit has seen every group of split calibration"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_in_the_plan(fit, tmp_path, options, records, message):
    code, out, err = fit("one-pass", *options, records=records, shown=())
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("next:", "").split())
    assert "loading" not in err and not (tmp_path / "adapter").exists()


def test_groups_that_the_fit_has_seen_are_named_and_do_not_count(fit):
    records = [{**row, "group": "calibration0"} if row["group"] == "fit0" else row for row in rows()]
    code, out, err = fit("one-pass", "--fused-layer", 1, "--max-over-refusal", 0.3, records=records)
    assert code == 0
    assert "1 calibration groups do not count for the budget, because the fit has seen them: calibration0." in err
    budget = json.loads(out)["budget"]
    assert (budget["groups"], budget["left_out"]) == (THINGS - 1, 1)


def test_methods_without_a_threshold_or_a_sweep_take_no_budget(call, tmp_path):
    for name, method in methods().items():
        if not (method.budgeted or method.sweep is not None):
            code, _, err = call("fit", name, "model", "--data", "x", "-o", tmp_path / "o", "--max-over-refusal", 0.1)
            assert code == 2 and "No such option: --max-over-refusal" in err


def test_a_screen_says_what_is_promised_and_an_evaluation_whether_it_held(call, known, data, tmp_path):
    path, out = data([*rows(), *({**row, "id": f"t{row['id']}", "split": "test"} for row in rows(4))]), tmp_path / "a"
    given = ("--fused-layer", 1, "--refusal", "sorry .", "--max-over-refusal", 0.3)
    code, shown, err = call("fit", "one-pass", known, "--data", path, "-o", out, *given)
    assert code == 0, err
    said = " ".join(shown.split())
    assert "Budget kept with confidence 0.9 on new groups, by 30 of calibration: over-refusal of at most 30 %" in said
    asked = ("eval", known, "--data", path, "--adapter", out, "--max-new-tokens", 2)
    code, found, err = call(*asked, "--json")
    assert code == 0, err
    (value,) = json.loads(found)["budgets"]
    assert (value["budget"], value["groups"], value["unit"]) == (0.3, 8, "group")
    assert value["held"] is (value["over_refusal"] <= 0.3)
    code, shown, _ = call(*asked)
    verdict = "held" if value["held"] else "is exceeded"
    assert f"over-refusal of at most 30 % {verdict}" in " ".join(shown.split())


def test_a_sweep_keeps_a_budget_on_groups_that_its_trials_have_not_seen(workshop, call, tmp_path):
    """On the reference VLM: one layer, few strengths, and a budget that only weak ones keep."""
    given = ("--sweep", "--layer", 4, "--max-over-refusal", 0.4, "--max-utility-loss", 0.6, "--confidence", 0.6)
    out = tmp_path / "adapter"
    code, printed, err = call(
        "fit", "refusal-direction", "reference:mild", "--data", workshop["records"], "-o", out, *given, "--json"
    )
    assert code == 0, err
    value = json.loads(printed)
    budget, sweep = value["budget"], value["sweep"]
    assert sweep["tested"] and sweep["best"] in sweep["trials"]
    assert all(one["bound"] <= one["budget"] for one in budget["kept"])
    assert f"strength {sweep['best']['strength']}" in budget["chosen"]
    assert value["hyperparameters"]["max_utility_loss"] == 0.6
    counted = sum(n for name, n in value["data"]["counts"].items() if name.startswith("calibration"))
    assert counted == 0  # its statistics are of the fit split
    assert load(methods()["refusal-direction"].sweep) is not None
