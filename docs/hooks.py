"""What the site says by enumerating the code: the command line, the methods' options, public names, tables of benches.

MkDocs calls :func:`on_files` and :func:`on_page_markdown`. In pages five comments stand for generated text:
``<!-- include: PATH -->`` for a Markdown file of the repository, ``<!-- source: PATH -->`` for one as a block of code,
``<!-- options: METHOD -->`` for a method's settings, ``<!-- families: all -->`` and ``<!-- importers: all -->`` for the
tables of families and of data sets.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[1]
_TYPES = {Path: "path", str: "text", int: "integer", float: "number", bool: "on or off"}
_MARK = re.compile(r"<!-- (include|options|source|families|importers): (\S+) -->")
_ROLE = re.compile(r":(?:func|mod|class|meth|data|attr):\s*<code>~?([\w.]+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no source file."""
    from mkdocs.structure.files import File

    for name, make in (("command-line.md", command_line), ("api.md", public_names)):
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put generated text in the place of its marks."""
    makers = {"include": include, "options": options, "source": source, "families": families, "importers": importers}
    return _MARK.sub(lambda found: makers[found[1]](found[2]), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name things as ``:func:`~package.module.name```; show ``name``."""
    return _ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2] or found[1]}</code>", html)


def include(path: str) -> str:
    """A Markdown file of the repository; tables inside ``<details>`` are rendered too.

    Raises:
        FileNotFoundError: there is none.
    """
    return (ROOT / path).read_text().replace("<details>", '<details markdown="1">')


def source(pattern: str) -> str:
    """The file of the repository that a pattern such as ``export/**/triton.py`` finds, as a block of code.

    Raises:
        ValueError: it finds none, or several.
    """
    (path,) = ROOT.glob(pattern)
    return f'```{path.suffix[1:]} title="{path.relative_to(ROOT)}"\n{path.read_text().strip()}\n```'


def options(method: str) -> str:
    """A table of a method's settings: option, default, values, meaning; the Python name where it is another one."""
    from safetykit.adapters.registry import get_method
    from safetykit.adapters.settings import about, choices, option_of, plain_type

    kind = get_method(method).settings
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        option = f"`{option_of(kind, name)}`"
        if about(kind, name).hidden:
            option = f"`{name}` (Python)"
        elif about(kind, name).option:
            option += f" (`{name}`)"
        values = ", ".join(f"`{value}`" for value in choices(field)) or _TYPES[plain_type(field)]
        default = about(kind, name).shown or _shown(field.default)
        rows.append(f"| {option} | {_cell(default)} | {values} | {_cell(field.description)} |")
    return "\n".join([*rows, "", "In Python the same names, without the dashes: `false_positive_rate=0.01`."])


def families(_: str = "all") -> str:
    """A table of the families that can be exported, with the layouts that are made for them."""
    from safetykit.export.layouts.registry import layouts
    from safetykit.toolkit.families.registry import families as known

    rows = ["| models | `model_type` | layouts |", "|---|---|---|"]
    for name, family in known().items():
        fit = [one for one, layout in layouts().items() if not layout.some_families or name in layout.made_for()]
        called = ", ".join([family.title or name, *family.relatives.values()])
        rows.append(f"| {called} | `{name}` | {', '.join(f'`{one}`' for one in fit)} |")
    return "\n".join(rows)


def importers(_: str = "all") -> str:
    """A table of the data sets and formats that can be imported."""
    from safetykit.toolkit.data.importers import importers as known
    from safetykit.toolkit.evaluation.benchmarks.measuring import METRICS

    rows = [
        "| KIND | data | what is read | carriers | licence | its publishers count | `eval` counts so |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in known().items():
        carriers = ", ".join(f"`{carrier}`" for carrier in one.carriers) or "as the file says"
        counted = METRICS.get(name)
        told = "–" if not one.metric else "no" if counted is None else "by the judge" if counted.judged else "yes"
        cells = (one.title, one.reads, carriers, one.licence, one.metric or "–", told)
        rows.append(f"| `{name}` | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


def command_line() -> str:
    """One section a command: usage, arguments, options with their values and defaults."""
    import typer

    from safetykit.cli import application
    from safetykit.toolkit.commands.exit_codes import EXIT_CODES

    root = typer.main.get_command(application())
    parts = [
        "# Command line",
        str(root.help).strip(),
        "Results go to stdout (`--json` for machines), progress and errors to stderr. This page is generated from the "
        "program.",
        "\n".join(
            ["| exit code | meaning |", "|---:|---|", *(f"| {code} | {said} |" for code, said in EXIT_CODES.items())]
        ),
    ]
    for path, command in commands(root, "safetykit"):
        if command is not root:
            parts += [f"## `{path}`", inspect.cleandoc(command.help or "").replace("\x08", "").strip()]
        parts.append(_parameters(command, path))
        if command is not root and command.epilog:
            parts.append(re.sub(r"(safetykit [^\n]+)", r"`\1`", command.epilog.strip()))
    return "\n\n".join(part for part in parts if part) + "\n"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A command and all below it, with what one types."""
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from commands(inner, f"{path} {name}")


def public_names() -> str:
    """The page of the public Python names, from what the package declares public."""
    import safetykit

    parts = [
        "# Python",
        "Everything public is imported from `safetykit`. Names load on first use: `import safetykit` is cheap.",
    ]
    for name in sorted(safetykit.__all__):
        item = getattr(safetykit, name)
        if inspect.isclass(item) or inspect.isfunction(item):
            parts.append(f"::: {item.__module__}.{item.__qualname__}\n    options:\n      heading_level: 2")
    return "\n\n".join(parts) + "\n"


def _parameters(command: Any, path: str) -> str:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    usage = " ".join([path, *(_metavar(one) for one in arguments), "[OPTIONS]"])
    rows = []
    for one in shown:
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        name = f"`{_metavar(one)}`" if one in arguments else names
        notes = "required" if one.required else _default(one)
        rows.append(f"| {name} | {_cell(_kind(one))} | {_cell(notes)} | {_cell(one.help)} |")
    if not rows:
        return ""
    table = "\n".join(["| option | value | default | meaning |", "|---|---|---|---|", *rows])
    return f"```text\n{usage}\n```\n\n{table}"


def _metavar(one: Any) -> str:
    return str(one.metavar or one.name).upper()


def _kind(one: Any) -> str:
    if getattr(one, "is_flag", False):
        return ""
    if "|" in (one.metavar or ""):
        return ", ".join(f"`{value}`" for value in one.metavar.split("|"))
    kind = one.type_descriptor.annotation
    while get_origin(kind) in (Annotated, Union, UnionType, list, tuple):
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    if get_origin(kind) is Literal:
        shown = ", ".join(f"`{value}`" for value in get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        shown = ", ".join(f"`{value.value}`" for value in kind)
    else:
        shown = _TYPES.get(kind, str(kind))
    return f"{shown}, repeatable" if one.multiple else shown


def _default(one: Any) -> str:
    shown = getattr(one, "show_default", None)
    value = shown if isinstance(shown, str) else one.default
    if value is None or value is False or value in ((), [], "") or callable(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cell(text: Any) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")
