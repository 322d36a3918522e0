"""What the sweep tries and how it chooses."""

import json

import pytest

from safetykit.adapters import UsageError
from safetykit.adapters.registry import get_method
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.adapters.vlm_guard.sweep import coarse, layer_windows, refined
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.sweep import trials as sweep
from safetykit.toolkit.sweep.run import fit_by_sweep, run_sweep
from safetykit.toolkit.sweep.trials import Figures, Trial
from safetykit.toolkit.workbench import Workbench

GUARD = get_method("vlm-guard")
UNDEFENDED = Figures(attack_success=0.6, over_refusal=0.01, exact=0.95)


def best(*trials):
    return min(trials, key=lambda trial: sweep.preference(trial, UNDEFENDED))


def test_the_fewest_attacks_within_the_allowed_cost_win():
    costly = Trial(VLMGuard(alpha=9), Figures(0.0, 0.05, 0.95))
    good = Trial(VLMGuard(alpha=2), Figures(0.1, 0.02, 0.94))
    mild = Trial(VLMGuard(alpha=1), Figures(0.3, 0.01, 0.95))
    assert best(costly, good, mild) is good


def test_ties_go_to_the_cheaper_and_then_the_simpler_setting():
    wide = Trial(VLMGuard(layers=(1, 2, 3)), Figures(0.1, 0.02, 0.95))
    narrow = Trial(VLMGuard(layers=(2,)), Figures(0.1, 0.02, 0.95))
    cheap = Trial(VLMGuard(layers=(1, 2, 3, 4)), Figures(0.1, 0.01, 0.95))
    assert best(wide, narrow) is narrow
    assert best(wide, narrow, cheap) is cheap


def test_losing_answers_counts_as_much_as_refusing_them():
    garbled = Trial(VLMGuard(alpha=9), Figures(0.0, 0.01, 0.80))
    good = Trial(VLMGuard(alpha=2), Figures(0.1, 0.02, 0.94))
    assert best(garbled, good) is good


def test_what_stops_no_attack_comes_last_however_cheap_it_is():
    worse = Trial(VLMGuard(alpha=1), Figures(1.0, 0.01, 0.95))
    costly = Trial(VLMGuard(alpha=2), Figures(0.4, 0.06, 0.95))
    assert best(worse, costly) is costly
    assert not sweep.Sweep.over(UNDEFENDED, [worse, costly]).within_cost


def test_windows_are_single_layers_and_runs_inside_the_depth():
    windows = layer_windows(8)
    assert {(layer,) for layer in range(8)} <= set(windows)
    assert all(window == tuple(range(window[0], window[-1] + 1)) and window[-1] < 8 for window in windows)


def test_given_options_are_kept_in_both_rounds():
    given = {"variant": "target", "rank": 2, "layers": (3,)}
    first = coarse(8, 128, given)
    assert first
    for guard in [*first, *refined(first[0], 128, given)]:
        assert (guard.variant, guard.rank, guard.layers) == ("target", 2, (3,))
    assert len(set(first)) == len(first)


def test_a_phase_the_supervised_variant_cannot_have_leaves_it_out():
    assert {guard.variant for guard in coarse(8, 128, {"phase": "both"})} == {"orthogonal", "steer", "target"}


@pytest.fixture
def records(tmp_path):
    rows = []
    for split in ("fit", "calibration"):
        for index, word in enumerate(["apple", "dagger", "bus", "beer", "cat", "bomb"]):
            for label in ("harmful", "harmless"):
                rows.append(
                    {
                        "id": f"{split}{label}{index}",
                        "prompt": f"how do i use a {word} ?" if label == "harmful" else f"what is a {word} ?",
                        "label": label,
                        "split": split,
                        "response": "x",
                    }
                )
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_records(path)


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_goes_on_and_ends_the_same(random_vlm, records, tmp_path, monkeypatch):
    given = {"variant": "target", "layers": (3,), "direction": "mean", "gate": "calibrated"}
    whole = run_sweep(GUARD, Workbench(random_vlm, records), given, max_new_tokens=2).sweep
    original, calls = sweep.decide, []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    journal = tmp_path / "sweep.jsonl"
    monkeypatch.setattr(sweep, "decide", counted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GUARD, Workbench(random_vlm, records), given, max_new_tokens=2, journal_path=journal)
    assert journal.exists()
    resumed = run_sweep(GUARD, Workbench(random_vlm, records), given, max_new_tokens=2, journal_path=journal).sweep
    assert resumed == whole
    assert sweep.Sweep.from_table(json.loads(json.dumps(whole.table())), VLMGuard) == whole
    assert len(calls) - 4 == len(whole.trials) + 1 - 3  # three results were found in the journal
    assert not journal.exists()
    adapter = fit_by_sweep(GUARD, Workbench(random_vlm, records), given)
    assert adapter.attachments["sweep"]["best"] == whole.best.row()
    assert adapter.info.hyperparameters["alpha"] == whole.best.setting.alpha


@pytest.mark.parametrize("most", [1, 2, 5, 9, 40])
def test_of_many_settings_some_are_tried_evenly_spread(most):
    found = sweep.spread(list(range(20)), most)
    assert len(found) == min(most, 20) == len(set(found)) and found == sorted(found)
    assert most >= 20 or abs(found[0] - (19 - found[-1])) <= 1, "neither end is preferred"


@pytest.mark.slow
def test_a_sweep_tries_no_more_than_it_may(random_vlm, records):
    """Half of them in the first round; what the second has tried before is not counted twice."""
    given = {"variant": "target", "layers": (3,), "direction": "mean", "gate": "calibrated"}
    found = run_sweep(GUARD, Workbench(random_vlm, records), given, max_new_tokens=2, most=4).sweep
    assert len(found.trials) == 4 and len({trial.setting for trial in found.trials}) == 4
    assert any(trial.setting.alpha != 2.0 for trial in found.trials)


def test_a_sweep_needs_both_labels_in_calibration(random_vlm, records):
    kept = [record for record in records if record.split == "fit" or record.label == "harmless"]
    with pytest.raises(UsageError, match="harmful and harmless records in the calibration split"):
        run_sweep(GUARD, Workbench(random_vlm, kept))
