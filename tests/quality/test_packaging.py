"""What a wheel holds: every package of the tree, and the marker that it is typed."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# Folders of the repository that are no part of the package.
OUTSIDE = {"tests", "bench", "docs", "build", "dist"}


def test_every_package_is_listed():
    found = {"safetykit"}
    for init in ROOT.rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and parts[0] not in OUTSIDE and not any(part.startswith((".", "work-")) for part in parts):
            found.add(".".join(("safetykit", *parts)))
    assert set(SETUPTOOLS["packages"]) == found


def test_the_package_is_marked_as_typed():
    assert (ROOT / "py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"]["safetykit"]
