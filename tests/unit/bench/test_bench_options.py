"""The census of the benchmarks: no option that no test passes, and every one passed acts."""

import argparse
import contextlib
import io
import json
import shutil
from importlib import import_module

import pytest
from bench_case import BENCH, PARTS, Ran
from bench_cases import BENCHES
from PIL import Image

NAMES = sorted(
    ".".join(path.relative_to(BENCH).with_suffix("").parts)
    for path in (*BENCH.glob("*.py"), *BENCH.glob("real/*.py"), *BENCH.glob("seven/*.py"))
    if "\ndef main(" in path.read_text() and path.stem != "optimum_loader"  # which runs where safetykit is not
)


class Asked(Exception):
    """Raised in the place of reading the command line."""


def module_of(name):
    """A benchmark; the steps of the real model import one another by bare names."""
    if name.startswith("real."):
        return pytest.importorskip(name.removeprefix("real."))
    return import_module(f"safetykit.bench.{name}")


def options_of(name, monkeypatch):
    """What a benchmark's parser takes."""
    found = []

    def parse(parser, *_, **__):
        found.append(parser)
        raise Asked

    with monkeypatch.context() as patch, contextlib.suppress(Asked):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr("sys.argv", [name])
        module_of(name).main()
    return [one for parser in found for one in parser._actions if one.option_strings and one.dest != "help"]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_benchmark_is_passed(name, monkeypatch):
    passed = {word for case in BENCHES if case.bench == name for word in case.words}
    options = options_of(name, monkeypatch)
    missing = [one.option_strings[-1] for one in options if not passed & set(one.option_strings)]
    assert not missing, f"no test passes {', '.join(missing)} to bench/{name}"
    known = {spelled for one in options for spelled in one.option_strings}
    assert {word for word in passed if word.startswith("--")} <= known


@pytest.fixture
def records(tmp_path):
    """A few records with a picture, of every split."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "picture.png")
    rows = [
        {"id": f"{split}{at}", "prompt": "what is this ?", "label": label, "carrier": "image", "image": "picture.png"}
        | {"split": split, "response": "x"}
        for split in ("fit", "calibration", "test")
        for at, label in enumerate(("harmful", "harmless"))
    ]
    (path := tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def made(request, tmp_path, records):
    """What words in braces stand for; models and graphs are made only for the cases that name them."""

    def word(text):
        for name in ("out", "other", "folder"):
            text = text.replace(f"{{{name}}}", str(tmp_path / name))
        if text == "{parts}":
            return str(shutil.copytree(PARTS, tmp_path / "parts"))
        if text == "{results}":
            return str(BENCH / "real/results")
        if text == "{page}":
            return str(shutil.copyfile(BENCH.parent / "docs/results.md", tmp_path / "page.md"))
        if text == "{records}":
            return str(records)
        if text == "{benchmark}":
            return f"pgd={records}"
        if text == "{checkpoint}":
            return str(request.getfixturevalue("vlm").path)
        if text == "{base}":
            return str(request.getfixturevalue("base_folder"))
        if text == "{adapter}":
            adapter = request.getfixturevalue("make_adapter")(("SubspaceProjection", "decoder.layers.0", "all", "both"))
            return str(adapter.save(tmp_path / "adapter"))
        return text

    (tmp_path / "folder").mkdir()
    return word


def replace(monkeypatch, module, dotted, result, calls):
    """Put a function that notes its arguments in the place of one of a module; a plain value in that of a value."""
    *path, name = dotted.split(".")
    owner = module
    for part in path:
        owner = getattr(owner, part)
    if not callable(getattr(owner, name)):
        monkeypatch.setattr(owner, name, result)
        return

    def noted(*given, **named):
        calls.setdefault(dotted, []).append([*given, *named.values()])
        return result(*given, **named) if callable(result) else result

    monkeypatch.setattr(owner, name, staticmethod(noted) if path and isinstance(owner, type) else noted)


CASES = [
    pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=f"{case.bench} {case.line[:60]}")
    for case in BENCHES
]


@pytest.mark.parametrize("case", CASES)
def test_it_acts(case, made, tmp_path, monkeypatch):
    module, calls = module_of(case.bench), {}
    typed = [made(word) for word in case.words]
    for dotted, result in case.replaced.items():
        replace(monkeypatch, module, dotted, result, calls)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [case.bench, *typed])
    with contextlib.redirect_stdout(printed := io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)):
        code = module.main() if case.bench.startswith("real.") else module.main(typed)
    said = case.check(Ran(printed.buffer.getvalue().decode(), tmp_path / "out", calls))
    assert not code
    assert all(said) if isinstance(said, list) else said
