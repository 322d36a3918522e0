"""Every importer there is: ours, and those of installed packages (entry points of the group ``safetykit.importers``).

Ours are found in the modules of :mod:`.sets`, whose decorator is the same function as anybody's.
"""

from __future__ import annotations

from pathlib import Path

from ....adapters.errors import UsageError
from ....adapters.near import did_you_mean
from ....adapters.plugins import Registry, import_all
from ....adapters.settings import listed
from .importer import Importer

IMPORTERS = Registry(
    Importer,
    ("importer", "importers"),
    "safetykit.importers",
    ours=lambda: import_all(f"{__package__}.sets", Path(__file__).parent / "sets"),
)
register = IMPORTERS.register


def importers() -> dict[str, Importer]:
    """All importers, by name."""
    return IMPORTERS.all()


def get_importer(name: str) -> Importer:
    """The importer of this name.

    Raises:
        UsageError: there is none; with the nearest name.
    """
    known = importers()
    if name in known:
        return known[name]
    hint = did_you_mean(name, list(known)) or f"There is {listed(list(known))}."
    raise UsageError(f"There is no importer {name!r}.", hint)


def recognised(path: Path) -> Importer:
    """The importer whose files lie in a folder.

    Raises:
        UsageError: there is none, or several.
    """
    found = [one for one in importers().values() if one.distinct and any(_has(path, file) for file in one.files)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"It is not known what {path} holds.", f"Name its kind: {listed(list(importers()))}.")
    names = listed([one.name for one in found])
    raise UsageError(f"{path} may be {names}.", "Name its kind before the path.")


def _has(path: Path, pattern: str) -> bool:
    if path.is_file():
        return path.match(pattern.rpartition("/")[2])
    return next(iter(path.glob(pattern)), None) is not None
