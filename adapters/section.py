"""What a card and a report show of an adapter's attachment, as a method declares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

LayerName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}$")]  # a decoder layer as a key of JSON


def _no_plots(value: Any, tag: str, draw: Any) -> Sequence[Any]:
    return ()


@dataclass(frozen=True)
class Section:
    """One kind of attachment.

    Its templates are Jinja: ``markdown`` for the card, ``html`` for the report, which shows the figures above it. Both
    see ``value`` (an instance of ``model``), ``at`` (the adapter's position, from 0) and ``figures``, and spell numbers
    by filters such as ``share`` and ``number``; text is escaped.

    Attributes:
        name: of the attachment, as the adapter carries it.
        model: type that its JSON must fit.
        plots: from the value, a tag that starts the names of its figures, and the drawing helpers
            (:mod:`safetykit.export.document.plots`), to its figures.
        markdown, html: the templates' text; None: ``section_<name>.md.jinja`` and ``.html.jinja`` of the shared ones.
    """

    name: str
    model: Any
    plots: Callable[[Any, str, Any], Sequence[Any]] = _no_plots
    markdown: str | None = None
    html: str | None = None

    @classmethod
    def beside(
        cls, module: str, name: str, model: Any, plots: Callable[[Any, str, Any], Sequence[Any]] = _no_plots
    ) -> Section:
        """A section whose templates ``section_<name>.md.jinja`` and ``.html.jinja`` lie beside a module.

        Args:
            module: its ``__file__``.
        """
        markdown, html = (
            Path(module).with_name(f"section_{name}.{kind}.jinja").read_text("utf-8") for kind in ("md", "html")
        )
        return cls(name, model, plots, markdown, html)
