"""YAML that somebody else may have written: read with limits, and with the line of every value for errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...adapters.errors import SafetykitError, UsageError
from ...adapters.settings import spelled_as_options

LARGEST = 2**20  # bytes of a file
_MOST, _DEEPEST = 20_000, 16  # values, of which references count each time, and levels

Place = tuple[str | int, ...]  # keys and positions that lead to a value


@dataclass(frozen=True)
class Read:
    """What a file says.

    Attributes:
        value: plain mappings, lists, texts, numbers, switches and None.
        lines: from 1, by the place of a value.
    """

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def where(self, place: Place) -> str:
        """A place as an error names it: file, line, and the keys that lead there."""
        known = next((place[:end] for end in range(len(place), -1, -1) if place[:end] in self.lines), ())
        line = f":{self.lines[known]}" if known in self.lines else ""
        keys = ".".join(map(str, place))
        return f"{self.path}{line}{f': {keys}' if keys else ''}"


@dataclass
class _Reader:
    path: Path
    lines: dict[Place, int] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self._constructor = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, place: Place) -> Any:
        self.count += 1
        if self.count > _MOST or len(place) > _DEEPEST:
            raise UsageError(
                f"{self.path} holds more than {_MOST:,} values, or more than {_DEEPEST} levels of them.",
                "Write a smaller file; a value that refers to itself never ends.",
            )
        self.lines[place] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*place, at)) for at, item in enumerate(node.value)]
        return self._constructor.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"{self.path}:{key_node.start_mark.line + 1}: a key is no text.", "Write a name.")
            key = str(key_node.value)  # as it is written: `on` and `1` are names here
            if key in found:
                raise UsageError(
                    f"{self.path}:{key_node.start_mark.line + 1}: {key} is there twice.", "Leave out one of them."
                )
            found[key] = self.value(item, (*place, key))
        return found


def read_yaml(path: Path) -> Read:
    """Read a file of one YAML document.

    Raises:
        UsageError: there is no such file, it is too large, or it is no YAML; with the line.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", "Pass a YAML file; `safetykit compare --init` writes one.")
    if path.stat().st_size > LARGEST:
        raise UsageError(f"{path} is larger than {LARGEST:,} bytes.", "A grid is a page or two.")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        reader = _Reader(path)
        value = None if node is None else reader.value(node, ())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {told}", "Mend it there; strings with `: ` need quotes.") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply.", "Write a flatter file.") from None
    return Read(path, value, reader.lines if node is not None else {})


@contextmanager
def part_of_grid(part: str) -> Iterator[None]:
    """Say which part of the grid an error is about."""
    try:
        with spelled_as_options():
            yield
    except SafetykitError as error:
        error.message = f"{part}: {error.message}"
        error.args = (error.message,)
        raise
