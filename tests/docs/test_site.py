"""The site builds without a warning, says what the program says, and names only tests that exist."""

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer

from safetykit.adapters.registry import methods
from safetykit.cli import application

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = spec_from_file_location("safetykit_docs_hooks", ROOT / "docs/hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_page_has_every_command_and_option(hooks):
    page = hooks.command_line()
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for path, command in hooks.commands(typer.main.get_command(application()), "safetykit"):
        section = page.split("\n## ")[0] if path == "safetykit" else sections[path]
        for one in command.params:
            for name in (*one.opts, *one.secondary_opts):
                if name.startswith("-") and not getattr(one, "hidden", False):
                    assert f"`{name}`" in section, f"{path} {name}"


def test_every_method_has_a_page_with_all_its_settings(hooks):
    for method in methods().values():
        page = (ROOT / f"docs/methods/{method.name}.md").read_text()
        assert f"<!-- options: {method.name} -->" in page, method.name
        table = hooks.options(method.name)
        assert table.count("\n| ") == len(method.settings.model_fields), method.name


@pytest.mark.parametrize("page", ["docs/threat-model.md"])
def test_a_promise_names_a_test_that_exists(page):
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / page).read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_links_to_files_that_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_no_other_server(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
