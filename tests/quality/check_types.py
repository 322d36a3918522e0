"""mypy over the package, counted room by room: ``python tests/quality/check_types.py [--update]``.

The repository root is itself the package ``safetykit``, whatever the folder is called. mypy knows nothing of editable
installs, so the package is shown to it through a link of the right name in its cache folder. All code is checked
strictly. ``mypy_ratchet.txt`` holds how many errors each room may have: rooms that are not in it, none. A count above
it fails, and so does one below, which asks to be written down: counts only fall.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RATCHET = Path(__file__).with_name("mypy_ratchet.txt")
CACHE = ROOT / ".mypy_cache"
# Never in the ratchet: files and rooms that users' code is checked against.
STRICT = (
    "__init__.py",
    "adapters",
    "export/pipeline",
    "toolkit/data/records.py",
    "toolkit/evaluation",
    "toolkit/model/vlm.py",
)
_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: ")


def errors() -> list[str]:
    """mypy's errors, one a line, files as paths from the root.

    Raises:
        SystemExit: mypy itself failed.
    """
    from mypy import api

    link = CACHE / "root" / "safetykit"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(CACHE / "types"), "--no-error-summary"]
    os.chdir(link.parent)  # from ROOT, the package's own __main__.py would be everybody's
    os.environ["MYPYPATH"] = str(link.parent)
    found, wrong, code = api.run([*options, "--no-pretty", "-p", "safetykit"])
    if code not in (0, 1):
        raise SystemExit(found + wrong)
    lines = []
    for line in found.splitlines():
        if match := _ERROR.match(line):
            path = Path(os.path.abspath(match["file"])).relative_to(link)
            lines.append(f"{path.as_posix()}{line[match.end('file') :]}")
    return lines


def room(error: str) -> str:
    """Where an error counts: a strict file or room, else the folder two floors below the root."""
    file = error.split(":", 1)[0]
    for strict in STRICT:
        if file == strict or file.startswith(f"{strict}/"):
            return strict
    return "/".join(file.split("/")[:2])


def allowed() -> dict[str, int]:
    """The ratchet: errors that each room may have."""
    lines = RATCHET.read_text().splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines if line and line[0] != "#")}


def judge(found: Counter[str], limits: dict[str, int]) -> list[str]:
    """What is wrong with the counts; empty if they are what the ratchet says."""
    wrong = []
    for name in sorted({*found, *limits}):
        count, limit = found[name], limits.get(name, 0)
        if name in STRICT and limit:
            wrong.append(f"{name}: strict, so that it has no place in {RATCHET.name}")
        if count > limit:
            wrong.append(f"{name}: {count} errors, {limit} allowed")
        elif count < limit:
            wrong.append(f"{name}: {count} errors, fewer than the {limit} allowed: run with --update to keep it so")
    return wrong


def main() -> int:
    """Check, or write the counts down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help="write lower counts to the ratchet")
    options = parser.parse_args()
    lines = errors()
    found, limits = Counter(map(room, lines)), allowed()
    if options.update:
        limits = {name: min(found[name], limit) for name, limit in limits.items() if found[name]}
        head = "# Errors of mypy that a room may have; rooms that are not named may have none. Counts only fall.\n"
        RATCHET.write_text(head + "".join(f"{name} {count}\n" for name, count in sorted(limits.items())))
    wrong = judge(found, limits)
    above = {text.split(":")[0] for text in wrong}
    print("\n".join([line for line in lines if room(line) in above] + wrong), file=sys.stderr)
    print(f"mypy: {len(lines)} errors, none of them in the strict part" if not wrong else "mypy: failed")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
