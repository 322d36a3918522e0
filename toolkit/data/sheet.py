"""A contact sheet of records: one HTML file that loads nothing, in which what may hurt is folded away."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment
from PIL import Image

from ...adapters.errors import UsageError
from .record import Record

MARK = b"<!doctype html><!-- safetykit data show -->"
_SIDE = 160  # pixels of a thumbnail
_PAGE = """\
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .75rem }
article { border: 1px solid; border-color: #8886; border-radius: .4rem; padding: .6rem; overflow-wrap: anywhere }
.harmful { border-left: .35rem solid #c33 } .harmless { border-left: .35rem solid #3a6 }
small { opacity: .75 } img { max-width: 100%; display: block; margin: .4rem 0 }
p { white-space: pre-wrap; margin: .3rem 0 }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ cards | length }} of {{ total }} records. Harmful ones are folded: open them only if you must read them.</p>
<main>
{%- for card in cards %}
<article class="{{ card.label }}">
<small>{{ card.id }}<br>{{ card.split }} · {{ card.carrier }} · {{ card.label }}
{%- if card.category %} · {{ card.category }}{% endif %}</small>
{%- if card.label == "harmful" %}<details><summary>harmful</summary>{% endif %}
{%- for role, text in card.turns %}
<p>{% if role %}<strong>{{ role }}</strong> {% endif %}{{ text }}</p>
{%- endfor %}
{%- for picture in card.pictures %}<img src="{{ picture }}" alt="picture of {{ card.id }}">{% endfor %}
{%- if card.response %}<p><small>answer: {{ card.response }}</small></p>{% endif %}
{%- if card.fault %}<p><strong>{{ card.fault }}</strong></p>{% endif %}
{%- if card.label == "harmful" %}</details>{% endif %}
</article>
{%- endfor %}
</main></body></html>
"""


def contact_sheet(records: Iterable[Record], title: str, total: int) -> bytes:
    """The file, with a thumbnail of every picture; a picture that cannot be read is told in its place.

    Args:
        total: how many records there are of which these are shown.
    """
    page = Environment(autoescape=True).from_string(_PAGE)
    return MARK + page.render(title=title, total=total, cards=[card_of(record) for record in records]).encode()


def card_of(record: Record) -> dict[str, Any]:
    """What a page shows of a record: its fields, ``turns`` as pairs of role and text, ``pictures`` as data URLs, and
    ``fault`` where they cannot be read."""
    fields = ("id", "split", "carrier", "label", "category", "response")
    card: dict[str, Any] = {name: getattr(record, name) for name in fields}
    card["turns"] = [(one.role, one.text) for one in record.messages] or [("", record.prompt)]
    try:
        pictures = record.pictures()
    except UsageError as error:
        return {**card, "pictures": [], "fault": error.message}
    return {**card, "pictures": [_thumbnail(picture) for picture in pictures], "fault": None}


def _thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a data URL."""
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    small.save(found := io.BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(found.getvalue()).decode()}"
