"""What most tests are not about, in small: see the fixture that uses it in ``conftest.py``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from safetykit.adapters.statistics import detector_report
from safetykit.toolkit.model import loadable


def draw_once(patch: pytest.MonkeyPatch) -> None:
    """Have a detector's learning curve drawn from one sample of each size."""
    patch.setattr(detector_report, "_DRAWS", 1)


def leave_garbage(patch: pytest.MonkeyPatch) -> None:
    """Have models that are unloaded collected some time: a test run holds millions of objects to look through."""
    patch.setattr(loadable, "gc", SimpleNamespace(collect=lambda: 0))
