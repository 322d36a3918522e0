"""The cards in `model_cards` of exports of the reference VLMs, made again by the commands that users type.

    python bench/cards.py -o OUT [--card reference-mild-sasa …] [--into model_cards]

Each card is that of an export which was checked and evaluated on the test split; those of VLM-Guard come from
`safetykit demo`. What is finished in OUT is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetykit.bench.skeleton import arguments, run, say

CARDS = Path(__file__).parents[1] / "model_cards"
_DATA = ("--data", "reference")
_EXPORT = ("export", "{model}", "--adapter", "adapter", *_DATA, "-o", "export")

Command = tuple[str, ...]

# By card: the checkpoint, and commands that are typed in a folder of their own. The last one makes the export.
RECIPES: Mapping[str, tuple[str, tuple[Command, ...]]] = {
    "reference-mild-vlm-guard": ("mild", (("demo", "--checkpoint", "mild", "-o", "demo"),)),
    "reference-severe-vlm-guard": ("severe", (("demo", "--checkpoint", "severe", "-o", "demo"),)),
    "reference-mild-care": (
        "mild",
        (
            ("diagnose", "{model}", *_DATA, "-o", "map"),
            ("fit", "care", "{model}", *_DATA, "--map", "map", "-o", "adapter"),
            _EXPORT,
        ),
    ),
    "reference-mild-sasa": ("mild", (("fit", "sasa", "{model}", *_DATA, "-o", "adapter"), _EXPORT)),
    "reference-mild-tga": ("mild", (("fit", "tga", "{model}", *_DATA, "-o", "adapter"), _EXPORT)),
}


def make(name: str, folder: Path) -> Path:
    """The export that a card is of, in ``folder``, unless it is there."""
    checkpoint, commands = RECIPES[name]
    export = folder / ("demo/export" if commands[-1][0] == "demo" else "export")
    if not (export / "README.md").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            typed = [word.format(model=f"reference:{checkpoint}") for word in command]
            say(f"safetykit {' '.join(typed)}")
            subprocess.run([sys.executable, "-m", "safetykit", *typed], cwd=folder, check=True)
    return export


def main(given: Sequence[str] | None = None) -> None:
    """Make the cards, and say where they differ from those of `model_cards`."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for exports; what is there is kept")
    parser.add_argument("--card", choices=RECIPES, action="append", help="all by default")
    parser.add_argument("--into", type=Path, help="folder of cards that they are copied to; by default nowhere")
    options = parser.parse_args(given)
    for name in options.card or RECIPES:
        made, kept = make(name, options.out / name) / "README.md", CARDS / f"{name}.md"
        same = kept.is_file() and kept.read_bytes() == made.read_bytes()
        say(f"{name}: {'as it is' if same else 'differs'}")
        if options.into:
            options.into.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, options.into / f"{name}.md")


if __name__ == "__main__":
    run(main)
