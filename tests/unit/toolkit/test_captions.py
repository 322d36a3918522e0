"""Captioned pictures: strict lines, no safety labels, and no picture that evaluation uses."""

import json

import pytest
from PIL import Image

from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.toolkit.data import shards
from safetykit.toolkit.data.captions import CaptionedPicture, captions_path, describe_captions, load_captions
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.reference.captions import caption, lines
from safetykit.toolkit.reference.language import REFUSALS, phrasings
from safetykit.toolkit.reference.world import things

TURN = {"instruction": "what?", "answer": "this."}
LINE = {"id": "a", "caption": "a red apple", "image": "apple.png", "turns": [TURN]}


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "apple.png")

    def written(*found):
        path = tmp_path / "captions.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in found) + "\n")
        return path

    return written


def test_a_line_reads_back_with_its_picture_and_turns(write):
    (found,) = load_captions(write(LINE))
    assert found.picture().size == (8, 8)
    assert found.turns[0].answer == "this."


@pytest.mark.parametrize("key", ["label", "harmful", "category"])
def test_a_safety_label_is_refused_and_the_reason_given(write, key):
    words = f"jsonl:2: it carries '{key}', but TGA is trained without safety labels"
    with pytest.raises(InvalidArtifact, match=words) as error:
        load_captions(write(LINE, {**LINE, "id": "b", key: "harmful"}))
    assert "Remove the key" in error.value.next_step


def test_a_safety_label_is_refused_in_python_too():
    with pytest.raises(ValueError, match="without safety labels"):
        CaptionedPicture(id="a", caption="x", label="harmless")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({**LINE, "caption": " "}, "is not a caption: caption"),
        ({**LINE, "id": 3}, "is not a caption: id"),
        ({**LINE, "response": "x"}, "is not a caption: response"),
        ({**LINE, "turns": [{"instruction": "what?"}]}, "is not a caption: turns.0.answer"),
        ({"id": "b", "caption": "x"}, "has no image"),
        ({**LINE, "caption": "x" * shards.LONGEST}, "is no caption: it is longer than 16,777,216 bytes"),
    ],
)
def test_a_bad_line_is_named(write, line, words):
    with pytest.raises(InvalidArtifact, match="jsonl:1") as error:
        load_captions(write(line))
    assert words in error.value.message


def test_texts_for_retrieval_need_no_picture(write):
    (found,) = load_captions(write({"id": "b", "caption": "x"}), with_pictures=False)
    assert found.image is None


def test_a_repeated_id_and_an_empty_file_are_refused(write):
    with pytest.raises(InvalidArtifact, match="jsonl:2 repeats the id 'a'"):
        load_captions(write(LINE, LINE))
    path = write(LINE)
    path.write_text("\n")
    with pytest.raises(UsageError, match="holds no captions"):
        load_captions(path)


def test_the_digest_follows_words_and_pixels_but_not_order(write, tmp_path):
    items = load_captions(write(LINE, {**LINE, "id": "b", "caption": "a pear"}))
    digest = describe_captions(items).sha256
    assert describe_captions(items[::-1]).sha256 == digest
    assert describe_captions(load_captions(write({**LINE, "caption": "an apple"}))).sha256 != digest
    before = items[0].digest()
    assert items[0].model_copy(update={"image": None}).digest() != before


def test_the_bundled_captions_are_what_the_script_writes():
    written = [json.loads(line) for line in captions_path("reference").read_text(encoding="utf-8").splitlines()]
    assert written == lines()


def test_the_bundled_captions_hold_no_picture_of_calibration_or_test():
    # records lie one folder deeper, so their paths start with ../
    seen = {item.image for item in load_captions(captions_path("reference"))}
    kept = {
        record.image.removeprefix("../")
        for record in load_records(data_path("reference"), ["calibration", "test"])
        if record.image
    }
    assert seen and not seen & kept


def test_the_bundled_captions_say_nothing_about_safety():
    items = load_captions(captions_path("reference"))
    by_word = {thing.word: thing for thing in things()}
    held_out = {phrase for topic in ("use", "get", "kind", "who") for phrase in phrasings(topic, held_out=True)}
    for item in items:
        thing = by_word[item.id.split("-")[0]]
        assert thing.split == "fit"
        assert item.caption == caption(thing) and "risky" not in item.caption and "safe" not in item.caption
        for turn in item.turns:
            assert turn.answer not in REFUSALS
            if thing.restricted:
                assert thing.use not in turn.answer and thing.get not in turn.answer
            assert not any(phrase.replace("{x}", "this") in turn.instruction for phrase in held_out)
    assert {by_word[item.id.split("-")[0]].restricted for item in items} == {True, False}
