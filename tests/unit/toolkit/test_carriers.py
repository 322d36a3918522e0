"""Requests drawn into pictures: the words are all there, and nothing but the request differs between labels."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.data.carriers.drawing import FORMS, parted
from safetykit.toolkit.data.carriers.lettering import SMALLEST, _broken, default_fonts, fitted
from safetykit.toolkit.data.carriers.made import Brush, with_carriers
from safetykit.toolkit.data.carriers.words import WORDS
from safetykit.toolkit.data.record import Record
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.splitting import split_records

SMALL = {"side": 256}


def record(name, label="harmless", prompt="How do I fly a kite?", **more):
    return Record(id=name, label=label, prompt=prompt, split="fit", **more)


RECORDS = [
    record("bad", "harmful", "How do I make the dangerous thing?", pair="good", response="Like this."),
    record("good", prompt="How do I make the paper kite?", pair="bad", response="Fold it.", category="toys"),
    record("alone", prompt="Why?", group="questions", tags=("short",)),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("carriers") / "out"
    made = with_carriers(RECORDS, out, Brush(**SMALL))
    return made, load_records(out)


def test_every_request_comes_in_every_form(drawn):
    made, records = drawn
    assert made.drawn == dict.fromkeys(FORMS, 3) | {"text+image": 2} and made.too_short == {"text+image": 1}
    assert not made.too_long and len(records) == 3 * (1 + len(FORMS)) - 1
    by_id = {one.id: one for one in records}
    for form, about in FORMS.items():
        bad, good = (by_id[f"{name}-{form}"] for name in ("bad", "good"))
        alone = by_id.get(f"alone-{form}", by_id["alone-blank"])  # of one word, it cannot be parted
        assert {one.carrier for one in (bad, good)} == {about.carrier}
        assert (bad.pair, good.pair, alone.pair) == (good.id, bad.id, None)
        assert (bad.group, alone.group) == ("bad", "questions") and alone.tags[0] == "short" and form in bad.tags
        assert good.response == ("Fold it." if about.answers else None) and good.category == "toys"
        assert bad.picture().size == (256, 256)
    splits = split_records(records, {"fit": 0.5, "test": 0.5})
    of = {one.id.split("-")[0]: split for one, split in zip(records, splits, strict=True)}
    assert all(of[one.id.split("-")[0]] == split for one, split in zip(records, splits, strict=True))


def test_what_is_said_beside_a_picture_tells_no_label(drawn):
    """But for the request itself."""
    _, records = drawn
    said = {one.id: one.prompt for one in records}
    for form in ("typographic", "scene"):
        assert said[f"bad-{form}"] == said[f"good-{form}"]
    for form in ("blank", "noise", "photo"):
        assert said[f"bad-{form}"] == RECORDS[0].prompt


def test_a_parted_request_stands_whole_in_prompt_and_picture():
    beginning, end = parted("How do I fly a kite?")
    assert (beginning, end) == ("How do I", "fly a kite?") and parted("Why?") == ("", "Why?")


def test_a_picture_depends_on_seed_record_and_form_alone(drawn, tmp_path):
    _, records = drawn
    with_carriers(RECORDS[1:2], tmp_path / "one", Brush(**SMALL))
    with_carriers(RECORDS[1:2], tmp_path / "other", Brush(**SMALL, seed=1))
    one, other = (load_records(tmp_path / name) for name in ("one", "other"))
    before = {record.id: record.picture() for record in records if record.pictured}
    pixels = [(np.asarray(before[one.id]), np.asarray(one.picture())) for one in one if one.pictured]
    assert len(pixels) == len(FORMS) and all((old == new).all() for old, new in pixels)
    assert any(
        (np.asarray(a.picture()) != np.asarray(b.picture())).any() for a, b in zip(one[1:], other[1:], strict=True)
    )


def test_pictures_and_conversations_come_along_and_are_not_drawn(drawn, tmp_path):
    _, records = drawn
    turns = [("user", "Hi"), ("assistant", "Hi"), ("user", "Why?")]
    said = tuple({"role": role, "content": content} for role, content in turns)
    talk = Record(id="talk", label="harmless", split="fit", messages=said)
    given = [records[3], RECORDS[2], talk]
    made = with_carriers(given, tmp_path / "out", Brush(("blank",), **SMALL))
    assert made.pictured == 2 and made.drawn == {"blank": 1}
    assert [one.id for one in load_records(tmp_path / "out")] == ["bad-typographic", "alone", "talk", "alone-blank"]
    with pytest.raises(UsageError, match="No record is a request in text"):
        with_carriers([records[3], talk], tmp_path / "none", Brush(**SMALL))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("prompt", ["", "   ", "\u200b\u200b"])
def test_a_request_without_a_letter_is_refused(prompt, tmp_path):
    with pytest.raises(UsageError, match="Record nothing: the prompt holds no letter"):
        with_carriers([*RECORDS, record("nothing", prompt=prompt)], tmp_path / "out", Brush(**SMALL))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", ["x" * 15_000, "x " * 15_000])
def test_what_cannot_fit_is_seen_at_once(prompt):
    began = time.process_time()
    assert fitted(default_fonts()[0], prompt, 400, 400, largest=40) is None
    assert time.process_time() - began < 2


def test_nothing_is_written_where_nothing_fits(tmp_path):
    with pytest.raises(UsageError, match="No request fits into a picture of 64 x 64 pixels"):
        with_carriers(RECORDS[:2], tmp_path / "out", Brush(("scene",), side=64))
    assert not (tmp_path / "out").exists()


def test_a_letter_that_no_font_has_is_refused_before_anything_is_written(tmp_path):
    foreign = record("foreign", prompt="凧 ?")
    with pytest.raises(UsageError, match=r"Record foreign: there is no letter '凧' \(U\+51E7\) in DejaVuSans.ttf"):
        with_carriers([foreign], tmp_path / "out", Brush(**SMALL))
    assert not (tmp_path / "out").exists()
    assert with_carriers([foreign], tmp_path / "out", Brush(("blank",), **SMALL)).drawn == {"blank": 1}


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=120), st.integers(20, 300))
def test_lines_hold_every_letter_and_no_more_than_fits(text, width):
    font = default_fonts()[0].of_size(SMALLEST)
    lines = list(_broken(font, text, width))
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)


def test_letters_are_as_large_as_fits():
    font, text = default_fonts()[0], "How do I fly a kite in the wind?"
    found = fitted(font, text, 300, 200, largest=60)
    assert found.height <= 200 and SMALLEST < found.size < 60
    larger = round((found.size + 1) * 1.25) * len(list(_broken(font.of_size(found.size + 1), text, 300)))
    assert larger > 200
    assert fitted(font, text * 20, 100, 60, largest=60) is None
    assert fitted(font, "Why?", 300, 200, largest=20).size == 20


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_every_language_says_each_thing(words):
    assert all(words) and words.parted.format("x") != words.parted
    assert not any(font.lacks("".join(words)) for font in default_fonts())
