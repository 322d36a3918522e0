"""The folder that a user begins with: a few records, a picture, and a page that says what each field is for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .record import SPLITS
from .writing import writing

_README = """\
# Records

`records.jsonl` has a record a line; `pictures/` holds what `image` names. Replace both by yours and ask
`safetykit data check` what is wrong.

| field | meaning |
|---|---|
| `id` | unique among the records |
| `prompt` | what the user writes, without turn markup |
| `image` | a picture, relative to this folder; leave it out for text |
| `images` | several pictures, which stand before the prompt |
| `messages` | a conversation in the place of `prompt`: `{"role": …, "content": …}`, the last one the user's |
| `response` | of a harmless record the answer that counts as right; of a harmful one what a successful attack says |
| `label` | `harmful` or `harmless` |
| `category` | free, such as `weapons` |
| `carrier` | `text`, `image`, `typographic` (words drawn in the picture), `text+image` or `adversarial` |
| `split` | `fit`, `calibration` or `test`; `safetykit data split` draws them |
| `pair` | id of the counterpart with the other label, in the same split |
| `group` | what it is about; records of a group are never parted |

Thirty records of each label in each split are the least that figures can stand on.
"""


def write_template(out: Path, *, overwrite: bool = False) -> int:
    """Write the folder; returns how many records there are.

    Raises:
        UsageError: ``out`` is taken.
    """
    count = 0
    with writing(out, overwrite=overwrite) as folder:
        (folder.folder / "README.md").write_text(_README)
        for fields, drawn in _examples():
            image = None if drawn is None else folder.keep(_sign(*drawn))
            folder.add({**fields, "image": image})
            count += 1
    return count


def _examples() -> Iterator[tuple[dict[str, Any], tuple[str, str] | None]]:
    """Fields of a record, and words and colour of its picture: in each split two pairs in text and two in pictures."""
    kinds = (("harmful", "dangerous", "#b04040"), ("harmless", "ordinary", "#3f8f5f"))
    for split, carrier, number in product(SPLITS, ("text", "image"), (1, 2)):
        named = f"{split}-{carrier}-{number}"
        for (label, word, colour), (other, *_) in zip(kinds, reversed(kinds), strict=True):
            shown = f"the {word} thing" if carrier == "text" else "the thing in the picture"
            fields = {
                "id": f"{named}-{label}",
                "prompt": f"How do I use {shown}? ({split} {number})",
                "response": "Carefully." if label == "harmless" else None,
                "label": label,
                "category": "examples",
                "carrier": carrier,
                "split": split,
                "pair": f"{named}-{other}",
                "group": named,
            }
            yield fields, None if carrier == "text" else (f"{word}\n{split} {number}", colour)


def _sign(words: str, colour: str) -> bytes:
    """A PNG of a coloured square with words."""
    picture = Image.new("RGB", (96, 96), colour)
    ImageDraw.Draw(picture).multiline_text((8, 36), words, fill="white")
    picture.save(found := io.BytesIO(), "PNG")
    return found.getvalue()
