"""The grid: what a file may say, and all that is wrong with one told at once, with its lines."""

import pytest
from bench_case import BENCH

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.comparison.grid import Grid, load_grid
from safetykit.toolkit.comparison.reading import read_yaml
from safetykit.toolkit.comparison.template import TEMPLATE

MODELS = "models: {m: reference:mild}\n"
RECORDS = "benchmarks: {b: reference}\n"


def fit(method, settings):
    return f"{MODELS}{RECORDS}defences: {{d: {{fit: {method}, data: x, settings: {{{settings}}}}}}}"


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
    assert grid.seeds == (0, 1, 2) and grid.models["exported"].baseline == "mine"


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
        (MODELS + RECORDS + "judges: [expected, expected]", "there twice"),
        (MODELS + RECORDS + "seeds: [0, 1]", "grid.yaml:3: seeds: does nothing: no fit draws at random"),
        (
            MODELS + RECORDS + "defences: {d: {defence: ecso, models: [x]}}",
            "grid.yaml:3: defences.d.models: there is no",
        ),
        (MODELS + RECORDS + "judges: expected", "grid.yaml:3: judges: it is no list"),
        (MODELS + RECORDS + "judges: []", "grid.yaml:3: judges: it needs one at least"),
        (fit("one-pass", "max-over-refusall: 1"), "has no setting 'max_over_refusall'"),
        (fit("one-pass", "max-over-refusal: 2"), "--max-over-refusal cannot be 2"),
        (fit("one-pass", "confidence: 0.8"), "--confidence does nothing with --max-over-refusal left out"),
        (fit("one-pass", "max-over-refusal: 0.1, false-positive-rate: 0.1"), "both set the threshold"),
        (fit("vlm-guard", "max-over-refusal: 0.1"), "a budget does nothing with vlm-guard without sweep"),
        (fit("tga", "max-over-refusal: 0.1"), "a budget does nothing with tga"),
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
