"""`safetykit compare`: every key of a grid, typed in one that is planned or run; what is refused, and what is kept."""

import json
import re
from pathlib import Path

import pytest
from planted_comparison import answer_all, write_grid

from safetykit.adapters.budget import Budget
from safetykit.toolkit.comparison import entries as keys
from safetykit.toolkit.comparison.grid import Grid
from safetykit.toolkit.model.options import LoadOptions

DOCS = Path(__file__).parents[2] / "docs/howto/compare.md"


@pytest.fixture
def planned(call, tmp_path, workshop, monkeypatch):
    """The plan of a grid whose words in braces are made by the workshop; no weights are loaded for it."""
    from safetykit.toolkit.model import loadable

    monkeypatch.chdir(tmp_path)

    def plan(text, code=0):
        made = re.sub(r"\{(\w+)\}", lambda found: workshop[found[1]], text)
        monkeypatch.setattr(loadable, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
        (tmp_path / "grid.yaml").write_text(made)
        found, out, err = call("compare", "--config", "grid.yaml", "-o", "out", "--plan", "--json")
        assert found == code, err
        assert not (tmp_path / "out").exists()
        value = json.loads(out)
        return value if code == 0 else err

    return plan


def named(value, what="defence"):
    return [cell[what] for cell in value["cells"]]


SHORT = "models: {m: '{tiny}'}\nbenchmarks: {b: {data: '{records}', limit: 6}}\n"
GRIDS = {
    "loading": (
        "title: Loads\nschema-version: 1\nmax-new-tokens: 3\n"
        "models:\n  m: {path: '{tiny}', device: cpu, dtype: float32, batch-size: 2}\n"
        "  n: {path: '{tiny}', device-map: auto, max-memory: cpu=4GiB}\n"
        "benchmarks:\n  b: {data: '{records}', split: test, limit: 6, max-new-tokens: 2}\n",
        lambda value: [
            named(value, "model") == ["m", "n"],
            len({cell["file"].rpartition("-")[2] for cell in value["cells"]})
            == 2,  # another way to run is another cell
            {cell["records"] for cell in value["cells"]} == {6},
        ],
    ),
    "adapters": (
        "models: {m: reference:mild, n: '{tiny}'}\n"
        "benchmarks: {b: {data: '{records}', limit: 6}}\n"
        "defences:\n  a: {adapter: '{guard}', models: [m]}\n  s: {adapter: ['{guard}', '{affine}'], models: [m]}\n"
        "  shield: {defence: system-prompt}\n"
        "judges: [expected, 'regex:^no', 'classifier:{sequence_judge}']\njudge-device: cpu\njudge-dtype: float32\n"
        "budgets: {over-refusal: 0.1, utility-loss: 0.2}\n",
        lambda value: [
            named(value) == ["none", "a", "s", "shield", "none", "shield"],
            value["judges"][:2] == ["expected", "regex:^no"],
            value["fits"] == [],
        ],
    ),
    "fits": (
        SHORT + "defences:\n"
        "  one: {fit: vlm-guard, data: '{records}', settings: {layers: 1}, skip-bad-rows: true}\n"
        "  two:\n    stack:\n      - {fit: vlm-guard, data: '{records}', settings: {layers: 1}, skip-bad-rows: true}\n"
        "      - {fit: one-pass, data: '{records}', refusal: Never., settings: {fused-layer: 1, seed: 1}}\n"
        "  three: {fit: vlm-guard, data: '{records}', settings: {layers: 1}, sweep: true, skip-bad-rows: true}\n"
        "  four: {fit: refusal-direction, data: '{records}', settings: {variant: random}}\n"
        "  five: {fit: hidden-detect, data: '{records}', settings: {layer: 1}, max-over-refusal: 0.6, "
        "max-utility-loss: 0.7, budget-by: record, confidence: 0.8}\n"
        "seeds: [0, 7]\nchoose-on: calibration\n",
        lambda value: [
            named(value)[::2] == ["none", "one", "two", "three", "four-seed0", "four-seed7", "five"],
            # What is reported, and what only helps to choose.
            [cell["benchmark"] for cell in value["cells"]] == ["b", "b-calibration"] * 7,
            # What two defences share is fitted once; each seed is a fit of its own.
            [one["method"] for one in value["fits"]]
            == ["vlm-guard", "one-pass", "vlm-guard", "refusal-direction", "refusal-direction", "hidden-detect"],
            value["fits_left"] == 6,
        ],
    ),
    "an export": (
        "models:\n  m: reference:mild\n  e: {path: '{export}', baseline: m}\n"
        "  s: {path: '{served}', served-model: served}\n"
        "benchmarks: {b: {data: '{records}', limit: 6, skip-bad-rows: false}}\n"
        "defences: {a: {adapter: '{guard}', models: [m]}}\n",
        lambda value: [
            [(one["model"], one["defence"]) for one in value["cells"]]
            == [("m", "none"), ("m", "a"), ("e", "none"), ("s", "none")]
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_comes_to_its_cells_and_fits(planned, name):
    text, check = GRIDS[name]
    said = check(planned(text))
    assert all(said), said


def all_keys():
    kinds = (Grid, keys.Defence, keys.Part, keys.Benchmark, keys.Budgets)
    found = {name.replace("_", "-") for kind in kinds for name in kind.model_fields}
    found |= {name.replace("_", "-") for name in (*keys.ModelEntry.model_fields, *LoadOptions.model_fields)}
    return {name.replace("_", "-") for name in Budget.model_fields} | found - {"loading", "budget"}


def test_every_key_is_typed_and_documented():
    typed = " ".join(text for text, _ in GRIDS.values())
    page = DOCS.read_text()
    for key in all_keys():
        assert re.search(rf"(?<![\w-]){key}:", typed), f"no test types {key}"
        assert f"`{key}`" in page, f"{DOCS.name} does not explain {key}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SHORT + "defences: {a: {adapter: nowhere}}\n", "defences.a: there is no adapter at nowhere"),
        (SHORT + "defences: {a: {adapter: '{guard}'}}\n", "defences.a: The adapter"),
        (SHORT + "defences: {a: {defence: shield}}\n", "There is no defence 'shield'"),
        (SHORT + "defences: {a: {fit: vlm-guard, data: nowhere}}\n", "defences.a: There are no records at nowhere"),
        (SHORT + "defences: {a: {fit: vlm-guard, data: '{records}', settings: {layers: 9}}}\n", "the fit of vlm-guard"),
        (
            SHORT
            + "defences: {a: {fit: vlm-guard, data: '{records}', settings: {layers: 1}, max-over-refusal: 0.1}}\n",
            "the fit of vlm-guard on m: --max-over-refusal is kept by trying settings from weak to strong",
        ),
        (
            SHORT + "defences: {a: {fit: hidden-detect, data: '{records}', max-over-refusal: 0.001}}\n",
            "the fit of hidden-detect on m:",
        ),
        (SHORT + "judge-device: cpu\n", "judge-device does nothing without a judge that is a model"),
        (SHORT + "judge-dtype: float7\n", "cannot be 'float7'"),
        (SHORT + "judges: [expectd]\n", "judges: There is no judge 'expectd'"),
        ("models: {m: nowhere}\nbenchmarks: {b: reference}\n", "models.m: There is no model folder at nowhere"),
        ("models: {m: reference:mild}\nbenchmarks: {b: nowhere}\n", "benchmarks.b: There are no records at nowhere"),
        (
            SHORT.replace("}}", "}, c: '{records}'}"),
            "benchmarks.c: 6 of its records are those of b, and would",
        ),
        (
            SHORT + "defences: {a: {fit: one-pass, data: '{records}', max-over-refusal: 0.001}}\n",
            "the fit of one-pass on m: A budget of 0.001 takes at least",
        ),
        (
            "models: {e: '{export}'}\nbenchmarks: {b: reference}\ndefences: {a: {adapter: '{guard}'}}\n",
            "an adapter cannot be put on e, an export",
        ),
        ("models: {e: {path: '{export}', dtype: float32}}\nbenchmarks: {b: reference}\n", "dtype does nothing"),
        (
            "models: {e: {path: '{export}', served-model: x}}\nbenchmarks: {b: reference}\n",
            "served-model does nothing",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(planned, text, said):
    errors = planned(text, code=4 if "The adapter" in said else 2)
    assert said in errors and "next:" in errors


def test_a_grid_to_begin_with_is_written_once(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("compare", "--init", "grid.yaml")
    assert code == 0 and "grid.yaml" in out
    assert "next:  safetykit compare --config grid.yaml -o comparison" in err
    code, _, err = call("compare", "--init", "grid.yaml")
    assert code == 2 and "already exists" in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["compare"], "No grid is given"),
        (["compare", "--config", "grid.yaml"], "No folder for results"),
        (["compare", "--config", "nowhere.yaml", "-o", "out"], "There is no file nowhere.yaml"),
        (["compare", "--init", "new.yaml", "--plan"], "--plan does nothing with --init"),
        (["compare", "--init", "new.yaml", "--jobs", "2"], "--jobs does nothing with --init"),
        (["compare", "--init", "new.yaml", "--config", "grid.yaml"], "--config does nothing with --init"),
        (["compare", "--init", "new.yaml", "-o", "out"], "--out does nothing with --init"),
    ],
)
def test_what_is_typed_wrongly_is_refused(refused, tmp_path, typed, said):
    (tmp_path / "grid.yaml").write_text("models: {m: reference:mild}\nbenchmarks: {b: reference}\n")
    assert said in refused(*typed)
    assert not (tmp_path / "new.yaml").exists()


def test_a_launcher_and_jobs_exclude_each_other(refused, tmp_path, monkeypatch):
    from safetykit.export.commands import compare

    monkeypatch.setattr(compare, "launched", lambda: 2)
    assert "so --jobs does nothing" in refused("compare", "--config", "grid.yaml", "-o", "out", "--jobs", "2")


def test_a_folder_of_something_else_is_left_alone(call, tmp_path):
    grid, out = write_grid(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    code, _, err = call("compare", "--config", grid, "-o", out)
    assert code == 2 and "thesis.txt, which no comparison wrote" in err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_comparison_that_was_killed_while_its_report_was_written_is_known_again(call, tmp_path):
    grid, out = write_grid(tmp_path), tmp_path / "out"
    answer_all(grid, out)
    assert call("compare", "--config", grid, "-o", out)[0] == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for name in ("results.json", "results.md", "report.html"):
        (out / name).unlink()
    assert call("compare", "--config", grid, "-o", out)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == whole


def test_cells_of_another_grid_are_kept_and_not_reported(call, tmp_path):
    grid, out = write_grid(tmp_path), tmp_path / "out"
    answer_all(grid, out)
    assert call("compare", "--config", grid, "-o", out)[0] == 0
    grid.write_text(grid.read_text().replace("  ecso: {defence: ecso}\n", ""))
    code, printed, err = call("compare", "--config", grid, "-o", out, "--json")
    assert code == 0 and "1 cells in" in err and "are of other grids; they are kept and not reported" in err
    assert [one["name"] for one in json.loads(printed)["arms"]] == ["none", "system-prompt"]
    assert list((out / "cells/mild/ecso").glob("*.json"))


def test_another_judge_judges_the_same_answers(call, tmp_path):
    grid, out = write_grid(tmp_path), tmp_path / "out"
    answer_all(grid, out)
    assert call("compare", "--config", grid, "-o", out)[0] == 0
    grid.write_text(grid.read_text().replace('"regex:sorry"', "phrases"))
    code, printed, err = call("compare", "--config", grid, "-o", out, "--json")
    assert code == 0 and "0 of 3 cells to answer" in err
    assert json.loads(printed)["judges"] == ["expected", "phrases"]
    (cell,) = (out / "cells/mild/none").glob("*.json")
    assert [one["judge"] for one in json.loads(cell.read_text())["judged"]] == ["expected", "phrases", "regex:sorry"]


@pytest.mark.slow
def test_fits_answers_and_kept_work(workshop, call, tmp_path, monkeypatch):
    """A run that is interrupted in its second cell goes on there and gives the bytes of one that was left alone; the
    model is loaded once in each."""
    from safetykit.export.commands import evaluation
    from safetykit.toolkit.model.vlm import VLM

    folder = Path(workshop["comparison"])
    original, seen, loads = evaluation.evaluate, [], []
    load = VLM.from_pretrained
    monkeypatch.setattr(VLM, "from_pretrained", lambda *given, **named: loads.append(given) or load(*given, **named))

    def stops(*given, **named):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(evaluation, "evaluate", stops)
    words = ("compare", "--config", workshop["tiny_grid"], "-o", tmp_path / "out", "--json")
    code, _, err = call(*words)
    assert code == 130 and f"what is finished is kept in {tmp_path / 'out/cells'}" in err
    assert "The same command goes on where it stopped." in err
    assert not (tmp_path / "out/results.json").exists() and len(loads) == 1
    code, printed, err = call(*words)
    assert code == 0 and "9 of 10 cells to answer" in err and "adapters to fit" not in err and len(loads) == 2
    made, alone = (
        {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
        for one in (tmp_path / "out", folder)
    )
    assert made == alone
    _as_it_would_be_by_hand(json.loads(printed), tmp_path / "out", workshop, call)


def _as_it_would_be_by_hand(value, out, workshop, call):
    """Seeds are a row, a budget is recorded, and a cell holds what `eval` says of a model that was just loaded."""
    assert [one["name"] for one in value["arms"]] == ["none", "guard", "drawn-seed0", "drawn-seed1", "probe"]
    assert [one["arm"] for one in value["summaries"]] == ["none", "guard", "drawn", "probe"]
    assert value["grid"]["defences"]["probe"]["stack"][0]["max-over-refusal"] == 0.5
    (probe,) = out.glob("adapters/tiny/hidden-detect-*")
    budget = json.loads((probe / "budget.json").read_text())
    assert (
        budget["kept"][0]["bound"] <= 0.5 and json.loads((probe / "fit_options.json").read_text())["max-over-refusal"]
    )
    (cell,) = out.glob("cells/tiny/probe/few-calibration-*.json")
    words = ("--data", workshop["records"], "--split", "calibration", "--limit", 4, "--max-new-tokens", 2)
    again = out.parent / "again.json"
    code, _, err = call("eval", workshop["tiny"], *words, "--adapter", probe, "--judge", "expected", "-o", again)
    assert code == 0, err
    assert again.read_bytes() == cell.read_bytes()
