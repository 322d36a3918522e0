"""Latency: the arithmetic on planted times, and one real measurement whose times are not judged."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from safetykit.adapters.errors import UsageError
from safetykit.export.document.latency import (
    BAKED,
    CONTROL,
    UNMODIFIED,
    Latency,
    compare,
    interleave,
    measure_latency,
    median_ratio,
)
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import adapt


def planted(cost, noise=0.02, rounds=60, seed=0):
    """Times of three arms that share a slow drift of the machine."""
    random = np.random.default_rng(seed)
    drift = 0.01 * np.linspace(1, 3, rounds)
    arms = {BAKED: 1 + cost, UNMODIFIED: 1.0, CONTROL: 1.0}
    return {name: drift * factor * np.exp(noise * random.standard_normal(rounds)) for name, factor in arms.items()}


def test_a_planted_cost_is_found_through_drift():
    phase = compare(planted(0.10), seed=0)
    assert phase.ratio.low < 1.10 < phase.ratio.high
    assert phase.verdict == "cost detected"


def test_equal_arms_show_no_cost():
    verdicts = [compare(planted(0.0, seed=seed), seed=0).verdict for seed in range(40)]
    assert verdicts.count("cost detected") <= 1


def test_a_faster_baked_model_is_not_called_a_speed_up():
    assert compare(planted(-0.10), seed=0).verdict == "no cost detected"


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = [
        (found := compare(planted(0.05, seed=seed), seed=seed).ratio).low <= 1.05 <= found.high for seed in range(100)
    ]
    assert sum(held) >= 88


def test_the_same_times_and_seed_give_the_same_figures():
    times = planted(0.03)
    assert compare(times, seed=1) == compare(times, seed=1)
    assert median_ratio(times[BAKED], times[BAKED], seed=0).model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_every_arm_runs_once_a_round_in_varying_order():
    calls = []
    arms = {name: (lambda name=name: (calls.append(name), (float(len(calls)), 0.0))[1]) for name in "abc"}
    times = interleave(arms, rounds=20, warmup_rounds=2, seed=0)
    rounds = [tuple(calls[at : at + 3]) for at in range(0, len(calls), 3)]
    assert all(set(one) == set("abc") for one in rounds) and len(set(rounds)) > 3
    assert {values.shape for values in times.values()} == {(20, 2)}


@pytest.fixture(scope="module")
def models(base_folder, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency") / "baked"
    shutil.copytree(base_folder, folder)
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    adapt(folder, read_manifest(folder), [adapter])
    return OnnxVLM.from_pretrained(folder, verify=False), OnnxVLM.from_pretrained(base_folder, verify=False)


def test_a_measurement_states_what_was_measured(models, requests):
    baked, base = models
    latency = measure_latency(baked, base, requests, providers=CPU, rounds=5, warmup_rounds=1, decode_steps=2)
    assert Latency.model_validate_json(latency.model_dump_json()) == latency
    assert (latency.batch, latency.pictures, latency.rounds, latency.decode_steps) == (4, 2, 5, 2)
    assert not latency.separate_control and latency.providers == CPU
    for phase in (latency.prefill, latency.decode):
        assert 0 < phase.ratio.low <= phase.ratio.value <= phase.ratio.high


def test_models_that_cannot_be_compared_are_refused(models, requests):
    baked, base = models
    with pytest.raises(UsageError, match="holds adapters"):
        measure_latency(base, baked, requests, providers=CPU)
    with pytest.raises(UsageError, match="no interval"):
        measure_latency(baked, base, requests, providers=CPU, rounds=2)
