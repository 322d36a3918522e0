"""Data sets that installed packages carry; a package is found and never imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...adapters.errors import UsageError

PREFIX = "package"


def package_folder(path: Path | str) -> Path:
    """The folder of an installed package that is written ``package:NAME``; any other path as it is.

    Raises:
        UsageError: there is no such package.
    """
    prefix, mark, name = str(path).partition(":")
    if prefix != PREFIX or not mark:
        return Path(path)
    found = find_spec(name) if name.isidentifier() else None  # of a name with dots it would import the first part
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise UsageError(
            f"There is no package {name!r} installed here.",
            f"Install it (pip install {name or 'NAME'}), or name the folder of the data set.",
        )
    return Path(places[0])
