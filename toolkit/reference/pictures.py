"""Draws the picture atlases that ship with the model organism. A build step: nothing at run time imports this.

Each emoji set becomes one PNG of 48-pixel tiles, tile i showing thing i, white where the set lacks it. Each font
becomes one PNG whose tile i shows the word of thing i (the typographic carrier). Needs `resvg-py` and, unpacked
side by side in one folder, the npm packages named in `EMOJI_SETS` and `FONTS`:

    npm pack @iconify-json/noto && mkdir -p packages/noto && tar xzf iconify-json-noto-*.tgz -C packages/noto \
        --strip-components=1        # and so on for the other packages
    python -m safetykit.toolkit.reference.pictures packages
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .atlas import COLUMNS, TILE, data_folder
from .world import Thing, things

# atlas name -> folder of the unpacked package @iconify-json/<folder>
EMOJI_SETS = {
    "noto": "noto",
    "noto-v1": "noto-v1",
    "fluent": "fluent-emoji",
    "fluent-flat": "fluent-emoji-flat",
    "twemoji": "twemoji",
    "emojione": "emojione",
}
# atlas name -> (font file inside the folder, colour of the letters, colour of the paper)
FONTS = {
    "type-slab": ("roboto-slab/files/roboto-slab-latin-700-normal.woff", "black", "white"),
    "type-comic": ("comic-neue/files/comic-neue-latin-700-normal.woff", "navy", "white"),
    "type-narrow": ("oswald/files/oswald-latin-400-normal.woff", "white", "darkgreen"),
    "type-script": ("lobster/files/lobster-latin-400-normal.woff", "darkred", "beige"),
    "type-hand": ("caveat/files/caveat-latin-700-normal.woff", "black", "lightyellow"),
}


def svg_of(icons: dict, name: str) -> str | None:
    """The SVG text of one icon of an Iconify collection, following aliases; None where the set lacks it."""
    icon = icons["icons"].get(name)
    if icon is None:
        alias = icons.get("aliases", {}).get(name)
        return svg_of(icons, alias["parent"]) if alias else None
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )


def draw_emoji(icons: dict, thing: Thing) -> Image.Image | None:
    """One 48-pixel RGB tile on white, or None where the set has no such icon."""
    import resvg_py

    svg = next((found for found in (svg_of(icons, name) for name in thing.icons) if found), None)
    if svg is None:
        return None
    png = resvg_py.svg_to_bytes(svg_string=svg, width=TILE, height=TILE, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB").resize((TILE, TILE))


def draw_word(font_file: Path, ink: str, paper: str, word: str) -> Image.Image:
    """One 48-pixel RGB tile with the word in the largest size that fits; long words go on two lines."""
    text = word if len(word) <= 6 else f"{word[: (len(word) + 1) // 2]}\n{word[(len(word) + 1) // 2 :]}"
    tile = Image.new("RGB", (TILE, TILE), paper)
    pen = ImageDraw.Draw(tile)
    for size in range(24, 5, -1):
        font = ImageFont.truetype(str(font_file), size)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, spacing=0)
        if right - left <= TILE - 2 and bottom - top <= TILE - 2:
            break
    corner = ((TILE - right - left) / 2, (TILE - bottom - top) / 2)
    pen.multiline_text(corner, text, font=font, fill=ink, spacing=0, align="center")
    return tile


def write_atlas(name: str, tiles: list[Image.Image | None], folder: Path) -> int:
    """Write `<name>.png`; returns how many things it shows. Five bits a channel keep the file small."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE), "white")
    for i, tile in enumerate(tiles):
        if tile is not None:
            coarse = tile.point([min(255, round(v / 255 * 31) * 255 // 31) for v in range(256)] * 3)
            sheet.paste(coarse, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    sheet.save(folder / f"{name}.png", optimize=True)
    return sum(tile is not None for tile in tiles)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the atlases of the reference model organism.")
    parser.add_argument("packages", type=Path, help="folder that holds the unpacked npm packages")
    packages = parser.parse_args(arguments).packages
    folder = data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in EMOJI_SETS.items():
        icons = json.loads((packages / package / "icons.json").read_text())
        shown = write_atlas(name, [draw_emoji(icons, thing) for thing in things()], folder)
        print(f"{name}: {shown} of {len(things())} things", file=sys.stderr)
    for name, (file, ink, paper) in FONTS.items():
        write_atlas(name, [draw_word(packages / file, ink, paper, t.word) for t in things()], folder)
        print(f"{name}: words drawn", file=sys.stderr)


if __name__ == "__main__":
    main()
