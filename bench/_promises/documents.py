"""The card cannot lie: each number in it, and in the data that it is made of, edited with every digest made right."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetykit.adapters.errors import InvalidArtifact, SafetykitError
from safetykit.export.document.card import check_card, write_card
from safetykit.export.document.figures import document_names
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest

from .row import Figure, Place, Row, Tally

MOST = 20  # numbers of a file that are edited, drawn if there are more
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
Keys = tuple[str | int, ...]


def numbers(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Where the numbers of a JSON value lie."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, (*at, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*at, index))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield at


def edited(value: Any, at: Keys) -> Any:
    """The value with the number at a place made 0, or 1 where it was that."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = type(inner[at[-1]])(inner[at[-1]] == 0)
    return copy


def card(place: Place) -> Figure:
    """Edit, seal again, and check; then also let safetykit write the card again, as a forger who knows it would."""
    tally, drawn, most = Tally(), random.Random(0), place.some(MOST, 4)
    rendered: Counter[str] = Counter()
    with place.scratch("card") as work:
        folder = shutil.copytree(place.export, work / "export")
        tally.accepted("as it was", lambda: check_card(folder))
        for name, count in ((LAYOUT.card, 5 * most), (LAYOUT.report, most)):
            text = (folder / name).read_text()
            found = list(_NUMBER.finditer(text))
            for match in drawn.sample(found, min(len(found), count)):
                new = str(int(match[0][0]) ^ 1) + match[0][1:]
                (folder / name).write_text(text[: match.start()] + new + text[match.end() :])
                _reseal(folder)
                tally.refused(f"{name}: {match[0]} at {match.start()}", lambda: check_card(folder), InvalidArtifact)
            (folder / name).write_text(text)
            _reseal(folder)
        tally.accepted("card and report as they were", lambda: check_card(folder))
        data = [folder / name for name in document_names(read_manifest(folder)) if (folder / name).is_file()]
        for path in data:
            whole, value = path.read_bytes(), json.loads(path.read_bytes())
            places = list(numbers(value))
            for at in drawn.sample(places, min(len(places), most)):
                path.write_text(json.dumps(edited(value, at)))
                _reseal(folder)
                name = f"{path.name}: {'.'.join(map(str, at))}"
                tally.refused(name, lambda: check_card(folder), SafetykitError)
                rendered["tried"] += 1
                rendered["refused"] += _refused_when_rendered_again(folder, work / "forged")
            path.write_bytes(whole)
            _reseal(folder)
        tally.accepted("its data as they were", lambda: check_card(folder))
    words = (
        f"edits refused or honest folders accepted; {rendered['refused']} of {rendered['tried']} edits of the data "
        "refused when the card was rendered again, too"
    )
    return tally.figure(words, dict(rendered))


def _reseal(folder: Path) -> None:
    """Make every digest right; a manifest that cannot be read any more is left as it is."""
    with contextlib.suppress(SafetykitError):
        write_manifest(read_manifest(folder, verify=False), folder)


def _refused_when_rendered_again(folder: Path, forged: Path) -> bool:
    shutil.copytree(folder, forged)
    try:
        write_card(forged)
        check_card(forged)
    except SafetykitError:
        return True
    finally:
        shutil.rmtree(forged)
    return False


ROWS = (
    Row(
        "card",
        "the card cannot lie",
        "each edited number of the card, the report and their data, with all digests made right, fails `card --check`",
        card,
    ),
)
