"""Imports run one way: no files import each other in a circle, and none imports from a floor above its own.

The check reads the source, with imports inside functions and for type checkers; it needs nothing installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("adapters", "toolkit", "export", "cli")
# The rooms of export/ from the ground up; those of one line stand beside each other.
ROOMS = (
    ("names",),
    ("manifest", "metadata", "passes"),
    ("base",),
    ("surgery",),
    ("runtime",),
    ("foreign",),
    ("parity",),
    ("layouts",),
    ("document",),
    ("pipeline",),
    ("commands",),
)


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Every file of the package, as a dotted name, with the files it imports."""
    paths = {_name(path, root): path for floor in FLOORS for path in (root / floor).rglob("*.py")}
    paths |= {_name(path, root): path for path in root.glob("*.py")}
    return {name: set(_imported(name, path, paths)) for name, path in paths.items()}


def circles(found: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more files that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []
    groups = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        open_.append(name)
        for other in sorted(found[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in open_:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = open_.index(name)
            group = open_[at:]
            del open_[at:]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(found):
        if name not in order:
            visit(name)
    return groups


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("safetykit", *(part for part in parts if part != "__init__")))


def _imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield from (found for found in (inner if inner in known else base,) if found in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def _pairs(found: dict[str, set[str]]) -> Iterator[tuple[list[str], list[str]]]:
    for name, others in sorted(found.items()):
        for other in sorted(others):
            yield name.split("."), other.split(".")


def _height(room: str) -> int | None:
    return next((at for at, rooms in enumerate(ROOMS) if room in rooms), None)


def test_no_files_import_each_other_in_a_circle():
    assert circles(imports()) == []


def test_no_file_imports_from_a_floor_above_its_own():
    up = [
        f"{'.'.join(one)} imports {'.'.join(other)}"
        for one, other in _pairs(imports())
        if len(one) > 1 < len(other)
        if one[1] in FLOORS and other[1] in FLOORS and FLOORS.index(other[1]) > FLOORS.index(one[1])
    ]
    assert up == []


def test_no_room_of_export_imports_from_a_room_above_it():
    up = []
    for one, other in _pairs(imports()):
        if one[1:2] != ["export"] or other[1:2] != ["export"] or len(one) < 3 or len(other) < 3 or one[2] == other[2]:
            continue
        mine, theirs = _height(one[2]), _height(other[2])
        if mine is not None and theirs is not None and theirs >= mine:
            up.append(f"{'.'.join(one)} imports {'.'.join(other)}")
    assert up == []


def test_every_room_of_export_has_its_place():
    rooms = {
        path.stem for path in (ROOT / "export").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "options"} == {room for level in ROOMS for room in level}


def test_the_check_sees_circles_also_those_of_type_checkers(tmp_path):
    for floor in FLOORS[:3]:
        (tmp_path / floor).mkdir()
    (tmp_path / "adapters" / "a.py").write_text("def f():\n    from .b import g\n")
    (tmp_path / "adapters" / "b.py").write_text("if TYPE_CHECKING:\n    from . import a\n")
    (tmp_path / "toolkit" / "c.py").write_text("import safetykit.adapters.a\n")
    found = imports(tmp_path)
    assert found["safetykit.toolkit.c"] == {"safetykit.adapters.a"}
    assert circles(found) == [["safetykit.adapters.a", "safetykit.adapters.b"]]
