"""The red-team set of the real VLM: harm is in the picture or the word alone, and nothing is shared between splits."""

import itertools

import prompts
import pytest
from objects import FRAMES, SHOWN, alignment_requests, objects, pairs, wordings
from redteam import CAPTIONED, MENTIONS, TEST_SETS, TWINS, UNSEEN_SETS, records

SPLITS = ("fit", "calibration", "test")


class NamedPictures:
    """Pictures by name only: what is drawn does not matter here."""

    def emoji(self, one, name):
        return f"{name}/{one.name}.png"

    def word(self, one, font):
        return f"{font}/{one.name}.png"


@pytest.fixture(scope="module")
def made():
    return {split: list(records(NamedPictures(), split)) for split in SPLITS}


def test_every_object_is_in_one_split_and_every_split_has_restricted_and_permitted_ones():
    names = [one.name for one in objects()]
    assert len(names) == len(set(names))
    for split in SPLITS:
        assert {one.restricted for one in objects() if one.split == split} == {True, False}


def test_no_picture_is_in_two_splits(made):
    pictures = {split: {record.image for record in made[split] if record.image} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not pictures[one] & pictures[other]


def test_records_name_the_object_that_they_are_about_and_splits_share_none(made):
    groups = {split: {record.group for record in made[split]} for split in SPLITS}
    known = {split: {one.name for one in objects() if one.split == split} for split in SPLITS}
    assert all(groups[split] <= known[split] for split in SPLITS)
    seen = {record.group for record in made["test"] if record.label == "harmful" and record.carrier == "image"}
    read = {record.group for record in made["test"] if record.label == "harmful" and record.carrier == "text"}
    assert seen <= read  # every thing that is shown is also asked about in words


def test_twins_have_the_same_words_about_different_objects(made):
    for split in SPLITS:
        by_id = {record.id: record for record in made[split]}
        harmful = [record for record in made[split] if record.label == "harmful" and record.pair]
        assert len(harmful) == sum(TWINS[split].values())
        for record in harmful:
            twin = by_id[record.pair]
            assert (twin.label, twin.carrier, twin.pair) == ("harmless", record.carrier, record.id)
            if record.carrier in ("image", "typographic"):
                assert twin.prompt == record.prompt and twin.image != record.image


def test_a_pictured_request_names_no_object(made):
    names = {one.name for one in objects()}
    for split in SPLITS:
        for record in made[split]:
            if record.carrier == "image":
                assert SHOWN in record.prompt
                assert not any(f" {name} " in f" {record.prompt} " for name in names)


def test_objects_come_equally_often(made):
    for split in SPLITS:
        harmful = [record.image for record in made[split] if record.carrier == "image" and record.label == "harmful"]
        counts = [
            sum(one.name in image for image in harmful) for one in objects() if one.restricted and one.split == split
        ]
        assert max(counts) - min(counts) <= 2  # one name may be part of another's


def test_look_alikes_are_harmless_requests_about_restricted_objects(made):
    restricted = {one.category for one in objects() if one.restricted}
    for split in SPLITS:
        found = [record for record in made[split] if "look-alike" in record.tags]
        assert len(found) == sum(MENTIONS[split].values())
        assert all(record.label == "harmless" and record.category in restricted for record in found)


def test_the_test_split_has_renderings_wordings_and_carriers_of_its_own(made):
    fit = {record.image.partition("/")[0] for record in made["fit"] + made["calibration"] if record.image}
    assert not fit & {*TEST_SETS, *UNSEEN_SETS}
    unseen = [record for record in made["test"] if "rendering-unseen" in record.tags]
    assert unseen and all(record.image.startswith(UNSEEN_SETS) for record in unseen)
    assert {record.carrier for record in made["test"]} - {record.carrier for record in made["fit"]} == {"typographic"}
    assert sum("captioned" in record.tags for record in made["test"]) == CAPTIONED
    for frame in FRAMES:
        assert set(wordings(frame, "test")) - set(wordings(frame, "fit")) == {frame.wordings[-1]}


def test_alignment_sees_no_object_of_another_split():
    others = {one.noun for one in objects() if one.split != "fit"}
    texts = [text for texts in alignment_requests().values() for text in texts]
    assert texts and not [text for text in texts for noun in others if f" {noun} " in f" {text.rstrip('?.')} "]


def test_no_frame_is_harmful_and_harmless_about_the_same_object():
    for split in SPLITS:
        assert not set(pairs(split, harmful=True)) & set(pairs(split, harmful=False))


def test_no_text_of_the_red_team_set_was_learned_in_alignment(made, monkeypatch):
    monkeypatch.setattr(prompts, "things", lambda _: ())
    monkeypatch.setattr(prompts, "_HARMLESS_KINDS", dict.fromkeys(prompts._HARMLESS_KINDS, ()))
    first = [*prompts.about_objects(), *prompts.harmless()]
    first += [prompts.Prompt(f"harm {at}", "harmful", "advbench", "x", "train") for at in range(300)]
    second = [prompt for prompt in first if prompt.label == "harmless"]
    third = prompts.third_round(None, first, second)
    learned = {prompt.text for prompt in (*first, *third)}
    for split in ("calibration", "test"):
        named = {record.prompt for record in made[split] if record.carrier == "text" and "captioned" not in record.tags}
        assert named and named & learned == set()
    named = [one.noun for one in objects() if one.restricted and one.split == "test"]
    refused = [prompt.text for prompt in third if prompt.label == "harmful"]
    assert all(any(noun in text for text in refused) for noun in named), "the language model has read about each"
