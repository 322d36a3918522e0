"""What pictures show: things with names, drawn by several emoji sets; Tux Paint's stamps; easy-VQA's shapes.

Emoji names and keywords come from `emojibase-data` (MIT), the drawings from the sets in `SETS` (licences: README.md).
Objects of the red-team set (objects.py) keep the name they have there. Naming a restricted thing is harmless and is
taught; requests about one never are.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from objects import objects
from PIL import Image

from safetykit.toolkit.reference.pictures import svg_of

SIZE = 224  # pixels
TRAIN_SETS = ("noto", "noto-v1", "twemoji", "fluent-emoji", "fluent-emoji-flat", "fxemoji")
TEST_SETS = ("emojione",)  # a rendering that no stage of training reads
HELD_OUT = 65  # per cent of the emoji outside the red-team set that no stage of training sees
STAMPS = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
_GROUPS = {3: "animals and plants", 4: "food and drink", 5: "places and vehicles", 6: "games and events", 7: "objects"}
# Variants of one thing that only a detail tells apart, scenes, and signs.
_LEFT_OUT = re.compile(
    r"face|oncoming|o’clock|thirty|moon(?! cake)|speaker|mailbox|envelope|medal|suit|cableway|notebook|globe|sunrise|"
    r"cityscape|sun behind|cloud with|tray|page|calendar|card index|chart|locked|japan|banknote|with |on ground|"
    r"hourglass|musical (note|score)|clinking|tilted|incoming|departure|arrival|love hotel|woman|man.s|piece|tunnel|"
    r"two-hump|black |polar|green book|blue book|orange book|books|closed book|clock$|railway|train|station|tram|"
    r"computer disk|optical|level|knobs|videocassette|film|dividers|paperclip|pushpin|nib|pages|bank$|post office|"
    r"hotel|department|office|hut|houses|foggy|night|hot springs|motorway|construction|stop sign|bus stop|stadium|"
    r"classical|landslide|map|desert$|park|beach|camping|temple|shrine|kaaba|synagogue|mosque|wedding|barber|milky|"
    r"cyclone|fog$|wave|comet|glowing|shooting|sparkle|tanabata|pine dec|dolls|streamer|wind|ceremony|envelope|"
    r"reminder|admission|softball|disc|goal|hole|joker|mahjong|playing|performing|knot|shoes|shoe$|sandal|bikini|"
    r"briefs|sari|kimono|swimsuit|prayer|horn|pager|fax|low battery|trackball|broken|placard|nazar|hamsa|moai|petri|"
    r"dna|x-ray|elevator|white cane|hammer and|old key|linked|tangerine|green apple|melon$|leafy|root|pea pod|"
    r"brown mush|tamale|falafel|stuffed|flatbread|fondue|cut of|shallow|pot of|oden|dango|bento|rice|curry|moon cake|"
    r"takeout|custard|shaved|beverage box|mate$|pouring|ice$|amphora|chopsticks|gorilla|orangutan|guide|service|poodle|"
    r"leopard|moose|bison|water buffalo|ewe|ram$|rat$|dodo|phoenix|goose|wing|chick$|hatching|orca|seal$|blossom|"
    r"white flower|lotus|rosette|wilted|hyacinth|sheaf|herb|shamrock|leaf|nest|coral|oyster|military helmet|lotion|"
    r"roll of|bubbles|headstone|funeral|coffin|diya|ledger|bookmark|label|receipt|money with|ballot"
)
_NO_ARTICLE = frozenset(
    [
        "bread",
        "bacon",
        "butter",
        "salt",
        "popcorn",
        "spaghetti",
        "sushi",
        "honey",
        "garlic",
        "broccoli",
        "ginger",
        "soap",
        "yarn",
        "thread",
        "fire",
        "wood",
        "chains",
        "money",
        "beer",
        "wine",
        "whisky",
        "sake",
        "champagne",
        "acid",
        "poison",
        "dice",
        "fireworks",
        "tennis",
        "bowling",
        "badminton",
        "lacrosse",
        "hockey",
        "pong",
        "cooking",
        "food",
        "luggage",
        "voltage",
        "fuji",
        "liberty",
        "skis",
        "blood",
    ]
)


@dataclass(frozen=True)
class Thing:
    """Something a picture can show.

    Attributes:
        icons: names in the emoji sets, tried in order.
        restricted: whether requests about using it can be harmful; such a thing is only named.
        held_out: kept from every stage of training.
    """

    name: str
    icons: tuple[str, ...]
    kind: str
    keywords: tuple[str, ...]
    restricted: bool = False
    held_out: bool = False

    @property
    def noun(self) -> str:
        """With its article."""
        return with_article(self.name)


def with_article(name: str) -> str:
    """`an apple`, `a unicorn`, `grapes`, `bread`."""
    last = name.split()[-1].lower()
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "rhinoceros"))
    if plural or last in _NO_ARTICLE or name == "radioactive material":
        return name
    vowel = name[0].lower() in "aeiou" and not name.lower().startswith(("eu", "uni", "ute", "one"))
    return f"{'an' if vowel else 'a'} {name}"


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("ñ", "n")).strip("-")


def _held_out(name: str) -> bool:
    return int(hashlib.sha256(f"thing {name}".encode()).hexdigest()[:8], 16) % 100 < HELD_OUT


@cache
def things(packages: Path) -> tuple[Thing, ...]:
    """The red-team set's objects, then emoji of the groups above; of the latter `HELD_OUT` % are held out."""
    rows = json.loads((packages / "emojibase-data/en/data.json").read_text())
    emoji = {_slug(row["label"]): row for row in rows}
    found = {}
    for one in objects():
        row = next((emoji[icon] for icon in one.icons if icon in emoji), {})
        found[one.icons[0]] = Thing(one.name, one.icons, one.category, tuple(row.get("tags", ())), one.restricted)
    taken = {icon for thing in found.values() for icon in thing.icons}
    names = {thing.name for thing in found.values()}
    for slug, row in emoji.items():
        label = row["label"].lower().replace("’", "'")
        if row.get("group") not in _GROUPS or slug in taken or label in names or _LEFT_OUT.search(label):
            continue
        kind = _GROUPS[row["group"]]
        found[slug] = Thing(label, (slug,), kind, tuple(row.get("tags", ())), label in RESTRICTED, _held_out(label))
    return tuple(found.values())


# Emoji outside the red-team set about whose use requests can be harmful.
RESTRICTED = frozenset({"water pistol", "boomerang", "chains", "money bag", "coin", "casino", "razor", "mouse trap"})


class EmojiSets:
    """Draws things from the unpacked sets on white paper; what was drawn is kept in a folder."""

    def __init__(self, packages: Path, kept: Path) -> None:
        self._packages, self._kept = packages, kept

    @cache  # noqa: B019  one instance a run
    def _icons(self, name: str) -> dict[str, Any]:
        icons = json.loads((self._packages / name / "icons.json").read_text())
        if name == "fxemoji":  # its names are written as one word
            icons["aliases"] = {}
        return icons

    def svg(self, thing: Thing, name: str) -> str | None:
        """The drawing's SVG text, or None where the set lacks it."""
        icons = self._icons(name)
        names = [icon.replace("-", "") for icon in thing.icons] if name == "fxemoji" else thing.icons
        return next((found for icon in names if (found := svg_of(icons, icon))), None)

    def picture(self, thing: Thing, name: str) -> Image.Image | None:
        """The drawing, [224, 224] RGB on white, or None where the set lacks it."""
        file = self._kept / name / f"{_slug(thing.name)}.png"
        if not file.is_file():
            import resvg_py

            if (svg := self.svg(thing, name)) is None:
                return None
            drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            on_white(Image.open(io.BytesIO(bytes(drawn)))).save(file)
        return Image.open(file).convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency as RGB, padded to a square of 224 pixels of white paper."""
    picture = picture.convert("RGBA")
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    paper = Image.new("RGBA", (SIZE, SIZE), "white")
    paper.alpha_composite(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return paper.convert("RGB")
