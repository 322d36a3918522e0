"""Renders chat templates in a process of its own, which has no more memory than it is given: see :mod:`.templates`.

``python -I -S template_worker.py BYTES CHARACTERS FOLDER…``: the folders hold Jinja and what it needs. Each line of
stdin is an object with a ``template`` and its ``variables``, each line of stdout one with the ``text`` or what went
wrong.
"""

from __future__ import annotations

import datetime
import functools
import json
import signal
import sys
from collections.abc import Callable
from typing import Any


def environment() -> Any:
    """The sandbox in which transformers renders chat templates, with what it offers to them (5.23,
    utils/chat_template_utils.py)."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """Text between ``generation`` and ``endgeneration`` is the model's own; here it is text."""

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    Generation.tags = {"generation"}

    def plain(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")

    class Names(Namespace):
        def __init__(*args: Any, **given: Any) -> None:  # any name may be given, also "self"
            for name in dict(*args[1:], **given):
                plain(name)
            Namespace.__init__(*args, **given)

        def __setitem__(self, name: str, value: Any) -> None:
            plain(name)
            super().__setitem__(name, value)

    class Dictionaries:
        def __call__(self, *args: Any, **given: Any) -> dict[Any, Any]:
            return dict(*args, **given)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Refused(TemplateError):
        """The template's own words about the request."""

    def refuse(message: object) -> None:
        raise Refused(str(message))

    def to_json(value: Any, ensure_ascii: bool = False, **given: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **given)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {
        "dict": Dictionaries(),
        "namespace": Names,
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return made


def answer(compiled: Callable[[str], Any], asked: dict[str, Any], characters: int) -> dict[str, Any]:
    """What a line of stdin gets."""
    parts, length = [], 0
    try:
        for part in compiled(asked["template"]).generate(asked["variables"]):
            length += len(part)
            if length > characters:
                return {"large": True}
            parts.append(part)
        return {"text": "".join(parts)}
    except MemoryError:
        parts.clear()
        return {"large": True}
    except Exception as error:  # a template may raise anything that Python does
        kind = type(error).__name__
        return {"refused" if kind == "Refused" else "failed": str(error)[:1000] or kind, "kind": kind}


def limit(memory: int) -> None:
    """Have no more memory than this, write no file and leave no core, where the system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, value in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (value, value))


def main(memory: str, characters: str, *folders: str) -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that asks
    sys.path += folders
    compiled = functools.lru_cache(maxsize=4)(environment().from_string)
    limit(int(memory))
    print(flush=True)
    for line in sys.stdin.buffer:
        print(json.dumps(answer(compiled, json.loads(line), int(characters))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
