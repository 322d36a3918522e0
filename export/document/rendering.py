"""Templates and the one spelling of every kind of number in them.

Strings are escaped where they are put in, in Markdown as well as in HTML; only what is marked safe
here passes unescaped. A name that a template uses and nobody gives is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from ...toolkit.evaluation.evaluate import Rate
from .latency import Ratio
from .sections import template

NOTHING = "—"
_TEMPLATES = Path(__file__).parents[2] / "model_cards"
_MARKDOWN = re.compile(r"[\\`*_\[\]|#~]")


def share(value: float) -> str:
    """0.1234 → 12.3%."""
    return f"{100 * value:.1f}%"


def part(value: float | None) -> str:
    """A share that may be missing."""
    return NOTHING if value is None else share(value)


def rate(value: Rate | None) -> str:
    """A share with its interval, or a dash where the group holds no such record."""
    return NOTHING if value is None else f"{share(value.rate)} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def rate_of(count: int, total: int) -> str:
    """The same, from counts."""
    return rate(Rate.of(count, total))


def ratio(value: Ratio) -> str:
    """A ratio with its interval."""
    return f"{value.value:.3f} ({value.low:.3f}–{value.high:.3f})"


def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value + 0.0:.1f} points"


def number(value: float | None) -> str:
    """Three significant digits."""
    return NOTHING if value is None else f"{value:.3g}"


def auroc(value: float | None) -> str:
    """Three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def kappa(value: float | None) -> str:
    """Two decimals."""
    return NOTHING if value is None else f"{value:.2f}".replace("-", "−")


def setting(value: Any) -> str:
    """A setting of any JSON type."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_NUMBERS: tuple[Callable[..., str], ...] = (share, part, rate, rate_of, ratio, points, number, auroc, kappa)


def escape_markdown(text: str) -> Markup:
    """Text that stays text, also inside a table."""
    plain = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_MARKDOWN.sub(r"\\\g<0>", plain))


def code(text: object) -> Markup:
    """A code span; backticks would end it and are left out. What could be a tag is escaped as HTML instead."""
    plain = re.sub(r"\s+", " ", str(text)).replace("`", "")
    if "<" in plain:
        return Markup("<code>" + str(escape(plain)).replace("|", "&#124;") + "</code>")
    return Markup("`" + plain.replace("|", r"\|") + "`") if plain else Markup(NOTHING)


@cache
def markdown_templates() -> Environment:
    """Templates whose expressions are escaped for Markdown."""

    def finalize(value: Any) -> Any:
        return value if not isinstance(value, str) or isinstance(value, Markup) else escape_markdown(value)

    def safe(spell: Callable[..., str]) -> Callable[..., Markup]:
        return lambda *values: Markup(spell(*values))

    environment = _environment(autoescape=False, finalize=finalize)
    environment.filters.update({spell.__name__: safe(spell) for spell in _NUMBERS}, setting=setting, code=code)
    return environment


@cache
def html_templates() -> Environment:
    """Templates whose expressions are escaped for HTML."""

    def unbroken(spell: Callable[..., str]) -> Callable[..., str]:
        # Word joiners: a line may not end within an interval.
        return lambda *values: spell(*values).replace("–", "\u2060–\u2060")

    environment = _environment(autoescape=True)
    environment.filters.update({spell.__name__: unbroken(spell) for spell in _NUMBERS}, setting=setting)
    return environment


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(_TEMPLATES), FunctionLoader(template)]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
