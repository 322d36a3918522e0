"""What takes long to make is made once a run, whichever of pytest-xdist's workers needs it first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this run, which ``make(folder)`` fills; others wait meanwhile. Tests must not change it.

    ``name`` says everything that the contents depend on. The folder does not exist when ``make`` is called.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "shared" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (done := Path(f"{folder}.done")).exists():
            make(folder)
            done.touch()
    return folder
