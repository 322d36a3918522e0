"""Drawing a figure takes longer than what most tests are about: theirs are sketches, of the real figure's size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

_REAL = Figure.savefig
_SKETCH = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}pt" height="{1}pt" viewBox="0 0 {0} {1}">'
    '<path id="figure" d="M 0 0" stroke="#010203"/></svg>\n'
)


def sketch_figures(patch: pytest.MonkeyPatch) -> None:
    """Have figures saved without laying them out and drawing them."""
    patch.setattr(Figure, "savefig", _sketch)


@contextmanager
def drawn() -> Iterator[None]:
    """Have them drawn as for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _REAL)
        yield


def _sketch(figure: Figure, file: Any, **options: Any) -> None:
    if options.get("format") != "svg":
        Image.new("RGB", (1, 1)).save(file, options.get("format", "png"))
        return
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    file.write(_SKETCH.format(width, height))
