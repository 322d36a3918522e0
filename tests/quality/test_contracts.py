"""Imports run one way: the contracts of pyproject.toml hold."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold(monkeypatch, capsys):
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports(no_cache=True) == 0, capsys.readouterr().out
