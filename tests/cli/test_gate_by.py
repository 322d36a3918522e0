"""`--gate-by`, as it is typed: what no probe can open is refused in the plan; a budget sets its threshold anew."""

import json

import pytest
from grouped import _picture, both_carriers  # noqa: F401  one is a fixture

from safetykit.adapters import Adapter

PROBED = ("--refusal", "sorry .", "--false-positive-rate", 0.2)
WATCHED = ("--tokens", 2, "--rounds", 1, "--allow-constant-gate")
PUSHED = ("--layers", 1, "--towards", "harmful")


@pytest.fixture
def fit(call, workshop, data, tmp_path):
    """A method on the tiny checkpoint, which has two layers; gives exit code, what is shown, and what is said."""

    def run(method, *options, out="adapter", model="tiny"):
        given = ("--data", data(both_carriers()), "-o", tmp_path / out, "--json")
        code, shown, err = call("fit", method, workshop[model], *given, *options)
        return code, json.loads(shown) if shown else None, " ".join(err.split())

    return run


@pytest.fixture
def made(fit, tmp_path):
    """The folder of an adapter."""

    def run(method, *options, out):
        code, _, err = fit(method, *options, out=out)
        assert code == 0, err
        return tmp_path / out

    return run


def test_a_budget_sets_the_threshold_of_the_gate(fit, made, tmp_path):
    probe = made("one-pass", *PROBED, "--fused-layer", 0, out="probe")
    opened = {}
    for limit in (0.15, 0.4):
        given = ("--gate-by", probe, "--max-over-refusal", limit, "--confidence", 0.8)
        code, value, err = fit("nullsteer", *PUSHED, *given, out=f"within-{limit}")
        assert code == 0, err
        (kept,), (row,) = value["budget"]["kept"], value["calibration"]
        assert (kept["budget"], row["what"]) == (limit, "gate at decoder.layers.1")
        assert row["false_positive_rate"] == pytest.approx(kept["observed"]) and kept["bound"] <= limit
        settings = value["hyperparameters"]
        assert (settings["max_over_refusal"], settings["gated_by"]["method"]) == (limit, "one-pass")
        adapter = Adapter.load(tmp_path / f"within-{limit}")
        for item in adapter.interventions:
            assert float(item.tensors["threshold"]) == pytest.approx(settings["gated_by"]["threshold"])
        opened[limit] = settings["gated_by"]["threshold"]
    assert opened[0.4] < opened[0.15]
    code, value, err = fit("nullsteer", *PUSHED, "--gate-by", probe)
    assert code == 0, err
    assert value["hyperparameters"]["gated_by"]["threshold"] == Adapter.load(probe).detector.threshold


def test_the_probe_of_a_streaming_guard_decides_at_every_token(fit, made, tmp_path):
    watch = made("streaming-guard", *WATCHED, "--layers", "0,1", out="watch")
    code, value, err = fit("nullsteer", *PUSHED, "--gate-by", watch)
    assert code == 0, err
    adapter, source = Adapter.load(tmp_path / "adapter"), Adapter.load(watch)
    assert [(item.phase, item.gate) for item in adapter.interventions] == [
        ("decode", "per-token"),
        ("prefill", "per-token"),
    ]
    assert value["hyperparameters"]["gated_by"]["threshold"] == float(source.interventions[0].tensors["threshold"])
    code, _, err = fit("nullsteer", *PUSHED, "--gate-by", watch, "--max-over-refusal", 0.3, out="other")
    assert code == 2 and "is read at every token, and prompts alone set no threshold for it" in err
    assert "loading" not in err


def test_what_no_probe_can_open_is_refused_in_the_plan(fit, made, workshop, tmp_path):
    late = made("one-pass", *PROBED, "--layers", "0,1", out="late")
    push = made("nullsteer", *PUSHED, out="push")
    for method, options, said in (
        ("nullsteer", ("--layers", 0, "--gate-by", late), "The gate reads layer 1, and the first layer that is pushed"),
        ("nullsteer", ("--site", "mlp", "--gate-by", late), "opens what is done to the output of a block"),
        ("nullsteer", ("--gate-by", push), "has no linear probe of the normal pass that could open a gate"),
        ("nullsteer", ("--gate-by", tmp_path / "none"), "There is no adapter folder"),
        ("nullsteer", ("--sweep", "--layers", 0, "--gate-by", late), "and the first layer that is pushed is 0"),
        (
            "vlm-guard",
            ("--gate", "calibrated", "--gate-by", late),
            "--gate is of the gate that VLM-Guard has by itself",
        ),
        (
            "vlm-guard",
            ("--variant", "supervised", "--gate-by", late),
            "--gate-by does nothing with --variant supervised",
        ),
        ("refusal-direction", ("--variant", "ablation", "--gate-by", late), "--gate-by does nothing with --variant"),
        ("care", ("--contrast", "carrier", "--gate-by", late, "--layers", "0-1", "--site", "block"), "is pushed is 0"),
    ):
        code, _, err = fit(method, *options, out="refused")
        assert code == 2 and said in err, (method, options, err)
        assert "loading" not in err and not (tmp_path / "refused").exists()
    code, _, err = fit("nullsteer", "--gate-by", late, out="refused", model="model")
    assert code != 0 and "was fitted on" in err and "loading" not in err
