"""The grid: what a file may say, and all that is wrong with one told at once, with its lines."""

import pytest
from bench_case import BENCH

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.comparison.grid import Grid, load_grid
from safetykit.toolkit.comparison.reading import read_yaml
from safetykit.toolkit.comparison.template import TEMPLATE

MODELS = "models: {m: reference:mild}\n"
RECORDS = "benchmarks: {b: reference}\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def faults(written):
    def found(text):
        with pytest.raises(UsageError) as caught:
            load_grid(written(text))
        return caught.value.message

    return found


def test_short_forms_are_the_long_ones(written):
    short, _ = load_grid(written(MODELS + RECORDS + "defences: {a: {adapter: x}, s: {adapter: [x, y]}}"))
    long = Grid.model_validate(
        {
            "models": {"m": {"path": "reference:mild"}},
            "benchmarks": {"b": {"data": "reference", "split": "test"}},
            "defences": {
                "a": {"stack": [{"adapter": "x"}]},
                "s": {"stack": [{"adapter": "x"}, {"adapter": "y"}]},
            },
        }
    )
    assert short == long
    assert list(short.defences) == ["none", "a", "s"]
    assert short.judges == ("expected",) and short.max_new_tokens == 32


def test_only_fits_that_draw_have_seeds(written):
    """A sweep of a method whose variant draws nothing has none, though another variant does."""
    grid, _ = load_grid(
        written(
            MODELS
            + RECORDS
            + "defences:\n  a: {fit: refusal-direction, data: x, sweep: true}\n"
            + "  b: {fit: refusal-direction, data: x, settings: {variant: random}}\n"
            + "  c: {fit: refusal-direction, data: x, settings: {variant: random, seed: 3}}\nseeds: [0]\n"
        )
    )
    assert [part.seeded for one in grid.defences.values() for part in one.stack] == [False, True, False]


def test_the_model_by_itself_is_there_without_a_word(written):
    grid, _ = load_grid(written(MODELS + RECORDS))
    assert list(grid.defences) == ["none"]


def test_the_template_is_a_grid(written):
    grid, _ = load_grid(written(TEMPLATE))
    assert list(grid.defences) == ["none", "one-pass"]


def test_every_choice_of_the_template_is_a_grid_too(written):
    """Every commented key, with its mark taken away."""
    lines = []
    for line in TEMPLATE.splitlines():
        bare = line.lstrip()
        made = line[: len(line) - len(bare)] + bare.removeprefix("# ") if bare.startswith("# ") else line
        lines.append(line if line.startswith(("# What", "# Lines")) else made)
    grid, _ = load_grid(written("\n".join(lines)))
    assert {"mine", "exported"} <= grid.models.keys()
    assert {"vlm-guard", "stacked", "system-prompt"} <= grid.defences.keys()
    assert grid.choose_on == "calibration" and grid.defences["vlm-guard"].stack[0].budget.max_over_refusal == 0.1
    assert grid.seeds == (0, 1, 2) and grid.models["exported"].baseline == "mine"


def test_what_results_say_of_a_grid_is_the_grid(written):
    """Options of loading and of budgets stand in it as they were typed."""
    text = (
        "models: {m: {path: reference:mild, dtype: float32, batch-size: 2}}\n"
        + RECORDS
        + "defences: {a: {fit: one-pass, data: x, max-over-refusal: 0.1, confidence: 0.8}}\nchoose-on: calibration\n"
    )
    grid, _ = load_grid(written(text))
    value = grid.model_dump(mode="json", by_alias=True)
    assert value["models"]["m"] == {
        "path": "reference:mild",
        "baseline": None,
        "served-model": None,
        "dtype": "float32",
        "batch-size": "2",
    }
    assert value["defences"]["a"]["stack"][0]["confidence"] == 0.8
    assert Grid.model_validate(value) == grid


@pytest.mark.parametrize("path", sorted(BENCH.glob("compare/*.yaml")), ids=lambda path: path.stem)
def test_the_grids_of_the_benches_are_grids(path):
    grid, _ = load_grid(path)
    assert len(grid.defences) > 5


def test_all_faults_are_told_at_once_with_their_lines(faults):
    said = faults(
        "models: {m: reference:mild}\n"
        "defences:\n"
        "  a: {fit: vlm-gard, data: reference}\n"
        "  b: {fit: vlm-guard, data: reference, settings: {alfa: 2}}\n"
        "  c: {adapter: x, sweep: true}\n"
        "  d: {}\n"
        "benchmarks:\n"
        "  r: {data: reference, splitt: test, limit: 0}\n"
        "judge: [expected]\n"
    )
    assert "faults:" in said
    for part in (
        "grid.yaml:3: defences.a",
        "Did you mean 'vlm-guard'?",
        "grid.yaml:4: defences.b",
        "no setting 'alfa'",
        "sweep does nothing without fit",
        "grid.yaml:8: benchmarks.r.splitt: there is no such key. Did you mean 'split'?",
        "grid.yaml:8: benchmarks.r.limit",
        "grid.yaml:9: judge: there is no such key. Did you mean 'judges'?",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MODELS, "benchmarks: it is needed"),
        (RECORDS, "models: it is needed"),
        (MODELS + RECORDS + "defences: {none: {adapter: x}}", "the model by itself"),
        (MODELS + RECORDS + "defences: {a: {models: [m]}}", "a is no defence"),
        (MODELS + RECORDS + "defences: {a: {adapter: x, models: [n]}}", "there is no model 'n' in the grid"),
        (MODELS + RECORDS + "defences: {a: {fit: sasa}}", "a fit needs data"),
        (MODELS + RECORDS + "defences: {a: {fit: sasa, data: x, adapter: y}}", "one of adapter and fit"),
        (MODELS + RECORDS + "defences: {a: {adapter: x, stack: [{adapter: y}]}}", "exclude each other"),
        (MODELS + RECORDS + "defences: {a: {fit: vlm-guard, data: x, refusal: Never.}}", "refusal does nothing"),
        (MODELS + RECORDS + "defences: {a: {fit: one-pass, data: x, sweep: true}}", "has no sweep"),
        (MODELS + RECORDS + "defences: {a: {fit: retrieval, data: x}}", "needs index"),
        (MODELS + RECORDS + "defences: {a: {fit: tga, data: x, skip-bad-rows: true}}", "skip-bad-rows does nothing"),
        (MODELS + RECORDS + "defences: {a: {fit: tga, data: x, max-over-refusal: 0.1}}", "no threshold and no sweep"),
        (MODELS + RECORDS + "defences: {a: {fit: one-pass, data: x, max-over-refusal: 2}}", "max_over_refusal"),
        (MODELS + RECORDS + "defences: {a: {fit: one-pass, data: x, confidence: 0.9}}", "confidence does nothing"),
        (MODELS + RECORDS + "defences: {a: {adapter: x, confidence: 0.9}}", "confidence does nothing"),
        (MODELS + RECORDS + "defences: {a: {adapter: x, max-over-refusal: 0.9}}", "does nothing without fit"),
        (
            MODELS + RECORDS + "defences: {a: {fit: one-pass, data: x, settings: {max-over-refusal: 0.1}}}",
            "write it beside fit",
        ),
        (MODELS + RECORDS + "defences: {a: {fit: one-pass, data: x, budget: {}}}", "a.budget: there is no such key"),
        ("models: {m: {path: x, loading: {}}}\n" + RECORDS, "there is no key loading"),
        (MODELS + RECORDS + "choose-on: test", "calibration"),
        (
            MODELS + "benchmarks: {b: {data: x, split: calibration}}\nchoose-on: calibration",
            "choose-on: it is the split of b, too",
        ),
        (
            MODELS
            + RECORDS
            + "seeds: [0]\ndefences: {a: {fit: refusal-direction, data: x, settings: {variant: random}}, "
            "a-seed0: {adapter: x}}",
            "defences.a-seed0: results call something else so",
        ),
        (
            "models: {m: x, e: {path: y, baseline: m}}\n" + RECORDS + "defences: {e: {adapter: x, models: [m]}}",
            "defences.e: results call something else so",
        ),
        (MODELS + RECORDS + "judges: [expected, expected]", "there twice"),
        (MODELS + RECORDS + "seeds: [0, 1]", "grid.yaml:3: seeds: does nothing: no fit draws at random"),
        (
            MODELS + RECORDS + "defences: {d: {defence: ecso, models: [x]}}",
            "grid.yaml:3: defences.d.models: there is no",
        ),
        (MODELS + RECORDS + "judges: expected", "grid.yaml:3: judges: it is no list"),
        (MODELS + RECORDS + "judges: []", "grid.yaml:3: judges: it needs one at least"),
        (
            MODELS + RECORDS + "defences: {d: {fit: one-pass, data: x, settings: {max-over-refusall: 1}}}",
            "defences.d: OnePassProbe has no setting 'max_over_refusall'",
        ),
        (MODELS + RECORDS + "budgets: {over-refusal: 2}", "less than or equal to 1"),
        ("models: {a b: reference:mild}\n" + RECORDS, "a name has letters"),
        ("models: {m: {path: reference:mild, dtype: float7}}\n" + RECORDS, "cannot be 'float7'"),
        ("models: {m: {path: reference:mild, baseline: n}}\n" + RECORDS, "is no other model"),
        ("models: {con: reference:mild}\n" + RECORDS, "device on Windows"),
        ("models: {m: x, M: y}\n" + RECORDS, "one file where A is a"),
    ],
)
def test_what_cannot_be_is_refused(faults, text, said):
    assert said in faults(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {m: x}\nmodels: {n: y}\n", "models is there twice"),
        ("a: &a [1]\nb: {c: *a, d: [*a, *a]}\n", None),
        ("a: &a {b: *a}\n", "values"),
        ("[1, 2\n", "is not YAML"),
        ("a: 2024-99-99\n", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", None),
        ("? [a]\n: b\n", "a key is no text"),
        ("\xff", None),
    ],
)
def test_files_are_read_with_limits(written, text, said):
    path = written(text)
    if said is None:
        read_yaml(path)
        return
    with pytest.raises(UsageError, match=said):
        read_yaml(path)


def test_references_that_multiply_are_refused(written):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 9)]
    with pytest.raises(UsageError, match="more than"):
        read_yaml(written("\n".join(lines)))


def test_a_deep_file_is_refused(written):
    with pytest.raises(UsageError, match="levels|nested"):
        read_yaml(written("a: " + "[" * 500 + "]" * 500))


def test_a_file_that_is_too_large_is_refused(written):
    with pytest.raises(UsageError, match="larger"):
        read_yaml(written("#" * 2**21))


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_yaml(tmp_path / "none.yaml")
