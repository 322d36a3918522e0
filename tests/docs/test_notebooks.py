"""The notebooks of the documentation run from top to bottom, their cells as one program."""

import json
from contextlib import nullcontext
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
ON_FEW = ("2_export_and_run.ipynb",)  # its sample would be much for a test
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def code_cells(name):
    cells = json.loads((FOLDER / name).read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def figures():
    """Numbers of the figures that are open."""
    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield plt.get_fignums
    plt.close("all")
    plt.switch_backend(backend)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, workshop, figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with workshop.few_records() if name in ON_FEW else nullcontext():
        for at, cell in enumerate(code_cells(name)):
            exec(compile("".join(cell["source"]), f"{name}, cell {at}", "exec"), names)
    assert figures(), "no plot was drawn"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    assert not any(cell["outputs"] for cell in code_cells(name))
