"""Every benchmark starts, says what it is, and runs its quick setting where that takes seconds."""

from __future__ import annotations

import json
import os
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest

from safetykit.bench import skeleton, summary
from safetykit.bench.load import served
from safetykit.bench.loops import mixed_lengths

BENCH = Path(skeleton.__file__).parent
# Parts that benchmarks import, and one that runs where safetykit is not installed.
PARTS = {
    *("skeleton", "random_decoder", "runtimes", "optimum_loader", "arm", "batching", "clients", "load"),
    *("loops", "memory_in_use"),
}
NAMES = sorted(path.stem for path in BENCH.glob("*.py") if path.stem not in PARTS)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_it_is(name, capsys):
    bench = import_module(f"safetykit.bench.{name}")
    with pytest.raises(SystemExit) as ended:
        bench.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"python bench/{name}.py" in said and bench.__doc__.splitlines()[0][:40] in said


def test_no_benchmark_reaches_into_the_tests():
    for path in BENCH.rglob("*.py"):
        text = path.read_text()
        assert "sys.path" not in text and '"tests"' not in text, path


def test_quick_changes_defaults_and_what_is_given_stands():
    parser = skeleton.arguments("What it is.", quick={"layers": 2, "rounds": 5})
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    assert vars(parser.parse_args(["--layers", "8", "--quick"])) == {"layers": 8, "rounds": 5, "quick": True}
    assert parser.parse_args(["--layers", "8"]).layers == 8
    assert "layers 2" in parser.format_help()


def test_a_failure_ends_with_its_line_and_code(capsys):
    from safetykit.adapters.errors import UsageError

    def fails():
        raise UsageError("No such thing.", "Take another.")

    with pytest.raises(SystemExit) as ended:
        skeleton.run(fails)
    assert ended.value.code == 2 and "No such thing." in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_was_started(number):
    before, ended = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}, []

    def waits():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            ended.append("the server")

    try:
        with pytest.raises(SystemExit) as left:
            skeleton.run(waits)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert left.value.code == 128 + number and ended == ["the server"]


def test_a_server_that_does_not_start_is_told(tmp_path):
    from safetykit.adapters.errors import UsageError

    with pytest.raises(UsageError, match="does not start"), served(tmp_path, 1, tmp_path / "log"):
        pass
    assert "There is no export" in (tmp_path / "log").read_text()


def test_mixed_lengths_are_the_same_each_time_and_spread_over_octaves():
    lengths = mixed_lengths(400)
    assert lengths == mixed_lengths(400) and min(lengths) >= 8 and max(lengths) <= 128
    octaves = [sum(low <= one < 2 * low for one in lengths) for low in (8, 16, 32, 64)]
    assert min(octaves) > 70


def test_results_are_read_back_where_they_lie(tmp_path):
    path = tmp_path / "out" / "results.json"
    assert skeleton.read_results(path) == {} and skeleton.read_results(path, {"rows": []}) == {"rows": []}
    skeleton.write_results(path, {"rows": [1]})
    assert skeleton.read_results(path) == {"rows": [1]}


def test_figures_of_benchmarks_that_were_not_run_again_stay(tmp_path):
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6}
    kept = json.loads((summary.RESULTS / "summary.json").read_text())
    metrics = dict.fromkeys(("attack_success", *summary.METRICS), rate)
    rows = {"rows": {group: {"metrics": metrics} for group in (*summary.GROUPS, "all")}}
    arms = [arm for _, file, _, arm in summary.ARMS if file == "sasa"]
    found = {checkpoint: {"detectors": dict.fromkeys(arms, rows)} for checkpoint in summary.CHECKPOINTS}
    skeleton.write_results(tmp_path / "sasa.json", found)
    found = summary.gather(tmp_path, json.loads(json.dumps(kept)))
    for title, file, _, _ in summary.ARMS:
        same = found["table"]["mild"][title] == kept["table"]["mild"][title]
        assert same == (file != "sasa"), title
    assert found["table"]["severe"]["SASA"]["exact"] == rate and found["settings"] == kept["settings"]


def test_the_committed_table_says_what_the_committed_results_say():
    kept = json.loads((summary.RESULTS / "summary.json").read_text())
    assert (summary.RESULTS / "summary.md").read_text() == summary.table(kept), "run python bench/summary.py"


def test_committed_results_are_tables_rather_than_megabytes():
    assert sum(path.stat().st_size for path in summary.RESULTS.iterdir()) < 400_000


def test_without_cuda_the_gpu_benchmark_says_so_and_measures_nothing(tmp_path, capsys):
    gpu = import_module("safetykit.bench.gpu")
    if gpu.examine()["providers"].get(gpu.PROVIDER):
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        skeleton.run(lambda: gpu.main(["-o", str(tmp_path / "gpu.json")]))
    assert ended.value.code == 2 and not (tmp_path / "gpu.json").exists()
    assert "nothing was measured" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gpu_benchmark_runs_dry_on_the_cpu(workshop, tmp_path):
    out = tmp_path / "gpu.json"
    with workshop.few_records():
        assert import_module("safetykit.bench.gpu").main([workshop["tiny"], "-o", str(out), "--quick"]) == 0
    cells = [cell for cells in json.loads(out.read_text())["matrix"].values() for cell in cells.values()]
    assert cells and all(cell["passed"] and cell["latency"]["rounds"] == 5 for cell in cells)


REAL = sorted(path.stem for path in (BENCH / "real").glob("*.py") if "\ndef main(" in path.read_text())


@pytest.mark.parametrize("name", REAL)
def test_every_step_of_the_real_model_says_what_it_is(name, monkeypatch, capsys):
    step = pytest.importorskip(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        step.main()
    assert ended.value.code == 0 and "usage" in capsys.readouterr().out
