"""What a card and a report show of an adapter's attachment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import StringConstraints

from ..plots import Plot

LayerName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}$")]  # a decoder layer as a key of JSON


@dataclass(frozen=True)
class Section:
    """One kind of attachment.

    Its templates are ``model_cards/section_<name>.md.jinja`` for the card and ``.html.jinja`` for the report, which
    shows the figures above it. Both see ``value`` (an instance of ``model``), ``at`` (the adapter's position, from 0)
    and ``figures``.

    Attributes:
        name: of the attachment, as the adapter carries it.
        model: type that its JSON must fit.
        plots: from the value and a tag, which starts the names of its figures, to its figures.
    """

    name: str
    model: Any
    plots: Callable[[Any, str], Sequence[Plot]] = lambda value, tag: ()
