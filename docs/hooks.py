"""What the site says by enumerating the code: the command line, the methods' options, the public names, tables of benches.

MkDocs calls :func:`on_files` and :func:`on_page_markdown`. In pages two comments stand for generated text:
``<!-- include: PATH -->`` for a Markdown file of the repository, ``<!-- options: METHOD -->`` for a method's settings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MARK = re.compile(r"<!-- (include|options): (\S+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no source file."""
    from mkdocs.structure.files import File

    for name, make in (("command-line.md", command_line), ("api.md", public_names)):
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put generated text in the place of its marks."""
    return _MARK.sub(lambda found: {"include": include, "options": options}[found[1]](found[2]), markdown)


def include(path: str) -> str:
    """A Markdown file of the repository; tables inside ``<details>`` are rendered too.

    Raises:
        FileNotFoundError: there is none.
    """
    return (ROOT / path).read_text().replace("<details>", '<details markdown="1">')


def options(method: str) -> str:
    """A table of a method's settings: name, default, values, meaning."""
    from safetykit.adapters.registry import get_method

    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    fields = get_method(method).settings.model_fields
    for name, field in fields.items():
        cells = [f"`{name}`", f"`{_shown(field.default)}`", _cell(_values(field.annotation)), _cell(field.description)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def command_line() -> str:
    """One section a command: usage, arguments, options with their values and defaults."""
    import typer

    from safetykit.cli import app

    root = typer.main.get_command(app)
    parts = [
        "# Command line",
        str(root.help).strip(),
        "Results go to stdout (`--json` for machines), progress and errors to stderr. Exit codes: 0 ok, 1 internal "
        "error, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed, 6 signature failed, 130 interrupted. "
        "This page is generated from the program.",
    ]
    for path, command in commands(root, "safetykit"):
        parts += [f"## `{path}`", inspect.cleandoc(command.help or "").replace("\x08", "").strip()]
        if not getattr(command, "commands", None) or path == "safetykit":
            parts.append(_parameters(command, path))
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
        "Everything public is imported from `safetykit`. Names are loaded on first use, so `import safetykit` is cheap.",
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
    choices = getattr(one.type, "choices", None)
    kind = ", ".join(f"`{getattr(value, 'value', value)}`" for value in choices) if choices else one.type.name
    return f"{kind}, repeatable" if one.multiple else kind


def _default(one: Any) -> str:
    value = getattr(one, "show_default", None)
    value = value if isinstance(value, str) else one.default
    if value in (None, False, (), []) or callable(value) or not str(value).strip():
        return ""
    return "" if "Sentinel" in repr(value) else f"`{getattr(value, 'value', value)}`"


def _values(annotation: Any) -> str:
    from typing import get_args, get_origin

    if get_origin(annotation) is None and isinstance(annotation, type):
        return annotation.__name__
    found = [value for value in get_args(annotation) if value is not type(None)]
    if found and all(isinstance(value, str | int | float) for value in found):
        return ", ".join(f"`{value}`" for value in found)
    inner = [_values(value) for value in found if value is not Ellipsis]
    return " or ".join(dict.fromkeys(inner)) if get_origin(annotation) is not tuple else f"list of {inner[0]}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cell(text: Any) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")
