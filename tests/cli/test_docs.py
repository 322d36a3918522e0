"""Every command and every Python snippet of the README and the docs runs, page by page, in the order of the page.

What a page takes for granted is made: ``records/``, ``captions.jsonl`` and ``photo.png`` are small and the reference
VLM's. A block that cannot run here says why in a comment before it: ``<!-- not run: reason -->``.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from workshop import safetykit

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]

# What a page says → what runs here: the reference VLM, and what takes long in small.
SUBSTITUTIONS = {
    "diagnose ./my-vlm --data records/ -o map": "diagnose ./my-vlm --data records/ -o map --pairs 8 --neurons 0",
    "-o sasa --with guard": "-o sasa --with guard --safety-layer 3 --fused-layer 4",
    "-o swept --sweep --layers 4 --variant steer --gate paper": (
        "-o swept --sweep --layers 4 --variant steer --gate paper --rank 1"
    ),
    "fit sasa ./my-vlm --data records/ -o sasa\n": (
        "fit sasa ./my-vlm --data records/ -o sasa --safety-layer 3 --fused-layer 4\n"
    ),
    "./my-vlm": "reference:mild",
}
# A long command that the workshop runs as well: its outcome is copied.
# Commands of processes of their own; tests/cli/test_processes.py runs them, as they stand on the page.
LAUNCHERS = ("torchrun ", "accelerate launch ")
KEPT = {
    "map": "diagnose reference:mild --data records/ -o map --pairs 8 --neurons 0",
    "guard": "fit vlm-guard reference:mild --data records/ -o guard --layers 4",
    "export": "export reference:mild --adapter guard -o export",
}

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*?) -->\s*)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *```",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason``: why it is not run."""

    language: str
    text: str
    reason: str | None
    line: int


def stop_servers(work):
    """End what a page started and, where it failed, did not end."""
    for path in work.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text()), signal.SIGTERM)


def blocks(page):
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        if match["language"] in ("bash", "sh", "shell", "console", "python"):
            inner = "".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True))
            line = text[: match.start("language")].count("\n") + 1
            found.append(Block(match["language"], inner, match["reason"], line))
    return found


def test_a_block_that_does_not_run_says_why(capsys):
    """And the list of them is shown, so that it stays short."""
    left_out = [(page, block) for page in PAGES for block in blocks(page) if block.reason is not None]
    with capsys.disabled():
        for page, block in left_out:
            print(f"\n  not run: {page.relative_to(ROOT)}:{block.line}: {block.reason}", end="")
    assert all(block.reason.strip() for _, block in left_out)
    assert len(left_out) <= sum(len(blocks(page)) for page in PAGES) / 3


def commands(text):
    """The commands of a block: a ``safetykit`` line as its words, to run in this process; others as a shell's text."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if words := shlex.split(line, comments=True):
            yield words[1:] if words[0] == "safetykit" and not set("|&;<>$`*") & set("".join(words)) else line


def test_a_block_s_commands_are_told_apart():
    text = "safetykit fit a \\\n  --b 'c d'  # why; how\n\n# a comment\nsafetykit doctor | head\nls\n"
    assert list(commands(text)) == [["fit", "a", "--b", "c d"], "safetykit doctor | head", "ls"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs(page, workshop, tmp_path, monkeypatch, request):
    wanted = [block for block in blocks(page) if block.reason is None]
    if not wanted:
        pytest.skip("nothing to run on this page")
    binaries, work = tmp_path / "bin", tmp_path / "work"
    binaries.mkdir()
    work.mkdir()
    command = binaries / "safetykit"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m safetykit.cli "$@"\n')
    command.chmod(0o755)
    shutil.copytree(workshop["records"], work / "records")
    shutil.copy(workshop["captions"], work / "captions.jsonl")
    shutil.copy(workshop["picture"], work / "photo.png")
    places = (binaries, Path(sys.executable).parent, os.environ["PATH"])
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, places))}
    monkeypatch.chdir(work)
    request.addfinalizer(lambda: stop_servers(work))
    names: dict = {}  # Python blocks of a page build on each other
    for block in wanted:
        text = block.text
        for shown, here in SUBSTITUTIONS.items():
            text = text.replace(shown, here)
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "python":
            exec(compile(text, where, "exec"), names)
            continue
        for typed in commands(text):
            if isinstance(typed, list):
                if kept := next((name for name, line in KEPT.items() if line.split() == typed), None):
                    shutil.copytree(workshop[kept], work / kept)
                    continue
                done = safetykit(*typed)
                assert done.code == 0, f"{where}\n{typed}\n{done.out[-2000:]}\n{done.err[-4000:]}"
                continue
            if typed.startswith(LAUNCHERS):
                continue
            shell = ["bash", "-euo", "pipefail", "-c", typed]
            done = subprocess.run(shell, cwd=work, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{where}\n{typed}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
