"""Drift of risks and gates from their calibration: seen where there is one, and no more false alarms than promised."""

import io
import json
import math
import shutil

import numpy as np
import pytest
from export_folder import write_folder
from serving import CHAT, body, serving
from workshop import safetykit

from safetykit import InvalidArtifact
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.serve.drift import Drift, Reference, least_window, references_of, within
from safetykit.serve.logs import Log

EDGES = tuple(np.linspace(-2, 2, 21))


def reference(values, what="risk", pictured=None):
    counts = np.bincount(np.searchsorted(EDGES, values, side="right"), minlength=len(EDGES) + 1)
    return Reference(what, pictured, EDGES, tuple(map(int, counts)))


def alarms(drift, values, pictured=False):
    return [one.alarm for value in values for one in drift.note({"risk": value}, pictured=pictured)]


def test_false_alarms_are_as_rare_as_promised_and_a_shift_is_seen():
    random = np.random.default_rng(0)
    false = seen = 0
    for _ in range(300):
        drift = Drift([reference(random.normal(size=200))], window=100, false_alarms=0.05)
        false += any(alarms(drift, random.normal(size=1000)))
        seen += alarms(drift, random.normal(1.5, size=100)) == [True]
    assert false <= 0.05 * 300
    assert seen >= 0.9 * 300


def test_the_limit_is_that_of_the_inequality():
    values = np.zeros(400)
    drift = Drift([reference(values), reference(values, "0.score")], window=50, false_alarms=0.01)
    first, second = (one for _ in range(100) for one in drift.note({"risk": 9.0}, pictured=True))
    share = 0.01 / 2 / 2  # of one of two references, of calibration or windows
    # None of 400 records and all of 50 prompts lie above an edge: n ln(1 / (1 - p)) = ln(2 / a), and n ln(1 / p).
    each = share / len(EDGES)
    expected = [
        (each * windows_left / 2) ** (1 / 50) - (1 - (each / 2) ** (1 / 400)) for windows_left in (1 / 2, 1 / 6)
    ]
    assert [first.unexplained, second.unexplained] == pytest.approx(expected, abs=1e-9)
    assert first.share == 1 and first.expected == 0 and first.above >= 0
    assert first.alarm and first.changed and not second.changed


@pytest.mark.parametrize(("share", "n"), [(0.0, 50), (1.0, 50), (0.02, 250), (0.5, 100)])
def test_intervals_hold_what_exact_ones_hold(share, n):
    """Chernoff's are wider than Clopper and Pearson's, and not by much."""
    from scipy.stats import binomtest

    (low,), (high,) = within(np.array([share]), n, 0.01)
    exact = binomtest(round(share * n), n).proportion_ci(0.99, method="exact")
    assert low <= exact.low + 1e-9 and high >= exact.high - 1e-9
    assert high - low <= 1.35 * (exact.high - exact.low)


def test_prompts_with_and_without_pictures_are_compared_apart():
    low, high = np.full(1000, -1.0), np.full(1000, 1.0)
    drift = Drift([reference(low, pictured=False), reference(high, pictured=True)], window=200, false_alarms=0.01)
    assert alarms(drift, low[:200], pictured=False) == [False] == alarms(drift, high[:200], pictured=True)
    assert alarms(drift, low[:200], pictured=True) == [True]
    assert alarms(drift, high[:200], pictured=True) == [False], "an alarm ends with the next window that is near"


def test_what_is_no_number_counts_as_the_largest():
    drift = Drift([reference(np.full(1000, -1.0))], window=200, false_alarms=0.01)
    assert alarms(drift, [math.nan] * 200) == [True]


@pytest.fixture(scope="module")
def calibrated(served, tmp_path_factory):
    """An export whose detector says how its harmless calibration records lay: far below every risk of `requests`."""
    folder = tmp_path_factory.mktemp("calibrated") / "export"
    shutil.copytree(served, folder)
    edges = [-100.0, -99.0, -98.0, -97.0]
    far = {"harmful": [0, 0, 5], "harmless": [500, 0, 0]}
    histogram = {
        "edges": edges,
        "counts": {"text": far, "image": far, "all": {"harmful": [9] * 3, "harmless": [9] * 3}},
    }
    (folder / "detector-1.json").write_text(json.dumps({"histogram": histogram, "threshold": 0.0}))
    write_manifest(read_manifest(folder), folder)
    return folder


def test_references_of_an_export(calibrated, tmp_path):
    found = references_of(calibrated, read_manifest(calibrated))
    assert [(one.what, one.pictured, one.edges, one.counts) for one in found] == [
        ("risk", pictured, (-99.0, -98.0), (500, 0, 0)) for pictured in (False, True)
    ]
    rows = [{"what": "gate at decoder.layers.4", "false_positive_rate": 0.25, "recall": None, "scores": [-1, 1]}]
    folder = write_folder(tmp_path / "gates", {"calibration.json": rows})
    (gate,) = references_of(folder, read_manifest(folder))
    assert (gate.what, gate.pictured, gate.counts) == ("1.score", None, (15, 5))
    drift = Drift([gate], window=10, false_alarms=0.5)
    for score, share in ((0.0, 0.0), (1e-9, 1.0)):
        windows = [one for _ in range(10) for one in drift.note({"1.score": score}, pictured=False)]
        assert [(one.share, one.expected) for one in windows] == [(share, 0.25)]


@pytest.mark.parametrize("text", ["{", '{"histogram": {"edges": "x"}}', '{"histogram": 5}'])
def test_a_damaged_reference_is_refused(calibrated, tmp_path, text):
    folder = tmp_path / "export"
    shutil.copytree(calibrated, folder)
    (folder / "detector-1.json").write_text(text)
    with pytest.raises(InvalidArtifact, match="was changed"):
        references_of(folder, read_manifest(folder, verify=False))
    write_manifest(read_manifest(folder, verify=False), folder)
    with pytest.raises(InvalidArtifact, match="no JSON|not valid: histogram"):
        references_of(folder, read_manifest(folder))


def test_the_server_shows_and_logs_drift(calibrated, as_messages, requests):
    lines = io.StringIO()
    watched = references_of(calibrated, read_manifest(calibrated))
    pictured = [one for one in requests if one.pictures]
    with serving(calibrated, log=Log(lines), watched=watched, drift_window=10, drift_false_alarms=0.5) as client:
        label = '{pictures="some",what="risk"}'
        assert f"safetykit_drift_alarm{label} 0.0" in client.get("/metrics").text
        for at in range(20):
            client.post(CHAT, json=body(as_messages(pictured[at % len(pictured)])))
        text = client.get("/metrics").text
    assert f"safetykit_drift_alarm{label} 1.0" in text and f"safetykit_drift_share{label} 1.0" in text
    assert f"safetykit_drift_expected{label} 0.0" in text
    assert f"safetykit_drift_alarms_total{label} 2.0" in text
    assert 'safetykit_drift_alarm{pictures="none",what="risk"} 0.0' in text
    (told,) = [one for one in map(json.loads, lines.getvalue().splitlines()) if one["event"].startswith("drift")]
    assert told["event"] == "drift" and told["what"] == "risk" and told["pictures"] == "some" and told["window"] == 10
    assert (told["above"], told["share"], told["expected"]) == (-99.0, 1.0, 0.0)


def test_options_of_drift(calibrated, served):
    done = safetykit("serve", calibrated, "--check", "--port", 0, "--json", "--drift-window", 50)
    assert [one["records"] for one in done.value["watched"]] == [500, 500] and done.value["drift_window"] == 50
    done = safetykit("serve", calibrated, "--check", "--port", 0, "--json", "--drift-false-alarms", 0.1)
    assert done.value["drift_false_alarms"] == 0.1
    done = safetykit("serve", calibrated, "--check", "--port", 0, "--json", "--drift-window", 0)
    assert done.value["watched"] == []
    done = safetykit("serve", served, "--check", "--port", 0, "--drift-window", 50)
    assert done.code == 2 and "--drift-window does nothing without" in done.err
    done = safetykit("serve", calibrated, "--check", "--drift-window", 0, "--drift-false-alarms", 0.1)
    assert done.code == 2 and "drift_false_alarms" in done.err.replace("-", "_")


def test_the_smallest_window_that_can_raise_an_alarm(calibrated, monkeypatch):
    random = np.random.default_rng(1)
    some = [reference(random.normal(size=60)), reference(random.normal(size=9), "0.score")]
    least = least_window(some, 0.05)
    for window, seen in ((least - 1, False), (least, True)):
        found = []
        for value in (-9.0, 9.0):  # no prompt above any value, or all
            drift = Drift(some, window=window, false_alarms=0.05)
            scores = {"risk": value, "0.score": value}
            found += [one.alarm for _ in range(window) for one in drift.note(scores, pictured=False)]
        assert any(found) == seen
    assert least_window([Reference("risk", None, EDGES, (0,) * 21 + (1,))], 0.01) > 1000
    assert least_window([], 0.01) is None
    typed = ("serve", calibrated, "--check", "--port", 0)
    with monkeypatch.context() as nothing_opens:
        nothing_opens.setattr("safetykit.serve.running.OnnxVLM", None)
        done = safetykit(*typed, "--drift-window", 1)
    least = least_window(references_of(calibrated, read_manifest(calibrated)), 0.01)
    assert done.code == 2 and "1 prompts can raise no alarm of drift" in done.err, done.err
    assert f"Pass --drift-window {least} or more, or 0" in " ".join(done.err.split())
    assert safetykit(*typed, "--drift-window", least).code == 0
    monkeypatch.setattr("safetykit.serve.plan.least_window", lambda *_: None)
    done = safetykit(*typed)
    assert done.code == 0 and "500 prompts can raise no alarm of drift: its records are too few" in done.err
