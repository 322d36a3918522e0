"""Options from a file: ``--config run.yaml`` says what the command line does not.

Keys are the options without their dashes, arguments their names::

    data: records/
    layers: 12-14
    adapter: [adapter, sasa]

Keys may stand in a section for a command (``fit``, in it ``vlm-guard``; ``export``), so that one file serves a whole
workflow. Values go through the parser that reads the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean

NOT_FROM_A_FILE = ("config", "help")


def spelling(parameter: Any) -> str:
    """How a file names an option or an argument: ``max-new-tokens``, ``o`` never (long names only), ``model``."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return max(parameter.opts, key=len).lstrip("-")


def defaults_of(path: Path, context: Any) -> dict[str, Any]:
    """What a file says for the command of a parser's context, by parameter name.

    Raises:
        UsageError: there is no such file, it is no mapping, or a key is no option of the command.
    """
    given = _read(path)
    commands = context.command_path.split()[1:]
    root = context.find_root().command
    found: dict[str, Any] = {}
    for section in _sections(given, root, commands, str(path)):
        for key, value in section.items():
            parameter = _parameter(str(key), context, str(path))
            found[parameter.name] = _value(str(key), value, parameter, str(path))
    return found


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise UsageError(f"There is no file {path}.", "--config takes a YAML file of options.")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}", "Write one `option: value` a line."
        ) from None
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise UsageError(f"{path} holds no options.", "Write one `option: value` a line.")
    return read


def _sections(given: Mapping[str, Any], group: Any, commands: list[str], where: str) -> Iterator[dict[str, Any]]:
    """The flat keys of every level down to the command; a later one overrides an earlier one.

    ``data`` is a section where options are indented below it, and else an option.
    """
    names = {name for name in getattr(group, "commands", {}) if isinstance(given.get(name), dict)}
    yield {key: value for key, value in given.items() if key not in names}
    if commands and commands[0] in names:
        yield from _sections(given[commands[0]], group.commands[commands[0]], commands[1:], where)


def _parameter(key: str, context: Any, where: str) -> Any:
    known = {spelling(one): one for one in context.command.params if spelling(one) not in NOT_FROM_A_FILE}
    if key not in known:
        commands = list(getattr(context.find_root().command, "commands", {}))
        if key in commands:
            raise UsageError(f"{key} in {where} is no section of options.", f"Indent the options below `{key}:`.")
        hint = did_you_mean(key, [*known, *commands])
        what = f"`{context.command_path} --help` lists its options; other commands' belong in sections of theirs."
        raise UsageError(f"{key!r} in {where} is no option of {context.command_path}.", f"{hint} {what}".strip())
    return known[key]


def _value(key: str, value: Any, parameter: Any, where: str) -> Any:
    if value is None or isinstance(value, dict):
        raise UsageError(f"{key} in {where} has no value.", f"Write `{key}: VALUE`, or leave the line out.")
    many = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1
    if many:
        return [_text(item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return _text(value)


def _text(value: Any) -> Any:
    """What the parser would read from the command line; numbers and switches it takes as they are."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
