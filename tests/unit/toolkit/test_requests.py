"""Every accepted form of a request and of a picture gives the answer of the plain form."""

import base64

import numpy as np
import pytest
from asking import PICTURE, TALK, encoded, image, text, user
from PIL import Image

from safetykit import Request, UsageError
from safetykit.toolkit.data.pictures import as_picture
from safetykit.toolkit.model.chat import as_request, as_requests, is_one
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.processors import load_processor
from safetykit.toolkit.model.requests import Turn

# --- pictures


@pytest.mark.parametrize(
    "form",
    [
        PICTURE,
        PICTURE.convert("RGBA"),
        np.asarray(PICTURE),
        np.asarray(PICTURE) / 255,
        np.asarray(PICTURE.convert("RGBA")),
        np.asarray(PICTURE)[::-1][::-1],
        encoded(),
        bytearray(encoded()),
        f"data:image/png;base64,{base64.b64encode(encoded()).decode()}",
    ],
    ids=["image", "RGBA", "array", "floats", "RGBA array", "view", "bytes", "bytearray", "data URL"],
)
def test_every_form_of_a_picture_is_the_same_picture(form):
    assert as_picture(form) == PICTURE
    assert Request("what is this ?", form) == Request("what is this ?", PICTURE)


def test_paths_are_pictures_too(saved):
    assert as_picture(saved) == as_picture(str(saved)) == PICTURE
    assert as_picture(f"{saved}#xywh=2,3,10,12") == PICTURE.crop((2, 3, 12, 15))


def test_a_file_that_was_changed_is_read_again(saved):
    import os

    assert as_picture(saved) == PICTURE
    other = PICTURE.rotate(180)
    other.save(saved)
    os.utime(saved, ns=(1, 1))
    assert as_picture(saved) == other


def test_grey_pictures_and_arrays_agree():
    grey = PICTURE.convert("L")
    assert as_picture(np.asarray(grey)) == as_picture(grey) == grey.convert("RGB")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"shape \[3, 8, 9\]"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.full((8, 8, 3), 200.0), "range from 0 to 1"),
        (np.full((8, 8, 3), np.nan), "range from 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (b"no picture", "10 bytes cannot be read as a picture"),
        ("data:image/png;base64,!!", "not base64"),
        ("https://example.org/a.png", "not on this machine"),
        ("missing.png", "There is no picture missing.png. Check the path"),
        (7, "A int is no picture"),
    ],
)
def test_what_is_no_picture_is_refused(form, message):
    with pytest.raises(UsageError, match=message):
        Request("what is this ?", form)


def test_several_pictures_may_come_in_different_forms(saved):
    mixed = Request("which ?", [saved, encoded(), np.asarray(PICTURE)])
    assert mixed.pictures == (PICTURE,) * 3
    assert Request("which ?", []) == Request("which ?")


@pytest.mark.parametrize(
    ("messages", "request_"),
    [
        ([user("tell me")], Request("tell me")),
        ([user([text("tell me")])], Request("tell me")),
        ([user([image(), text("what is this ?")])], Request("what is this ?", PICTURE)),
        ([user([image(encoded(), "url"), "what is this ?"])], None),
        (
            [user([{"type": "image_url", "image_url": {"url": "DATA"}}, text("what is this ?")])],
            Request("what is this ?", PICTURE),
        ),
        (
            [user([{"type": "image", "base64": base64.b64encode(encoded()).decode()}, text("what is this ?")])],
            Request("what is this ?", PICTURE),
        ),
        ([{"role": "system", "content": "be careful"}, user("tell me")], Request("tell me", system="be careful")),
        (
            [{"role": "system", "content": [text("be careful")]}, user("tell me")],
            Request("tell me", system="be careful"),
        ),
        (
            [user("tell me"), {"role": "assistant", "content": "it is"}],
            Request("tell me", answer="it is"),
        ),
    ],
)
def test_messages_of_one_turn_are_the_plain_request(messages, request_):
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if isinstance(part, dict) and part.get("image_url") == {"url": "DATA"}:
                part["image_url"] = {"url": f"data:image/png;base64,{base64.b64encode(encoded()).decode()}"}
    assert as_request(messages) == (request_ or Request("what is this ?", PICTURE))


def test_turns_pass_through_as_they_are():
    messages = [
        {"role": "system", "content": "be careful"},
        user([text("look:"), image(), text("what is this ?")]),
        {"role": "assistant", "content": "a thing"},
        user("is it dangerous ?"),
    ]
    made = as_request(messages)
    assert made.prompt == "is it dangerous ?"
    assert made.pictures == (PICTURE,)
    assert made.system == "be careful"
    assert made.turns == (
        Turn("user", ("look:", PICTURE, "what is this ?")),
        Turn("assistant", ("a thing",)),
        Turn("user", ("is it dangerous ?",)),
    )
    assert made.messages() == [
        {"role": "system", "content": [text("be careful")]},
        user([text("look:"), {"type": "image"}, text("what is this ?")]),
        {"role": "assistant", "content": [text("a thing")]},
        user([text("is it dangerous ?")]),
    ]
    bare = made.without_pictures()
    assert bare.pictures == ()
    assert bare.messages()[1] == user([text("look:what is this ?")])


def test_the_order_of_parts_is_kept():
    made = as_request([user([text("what is this ?"), image()])])
    assert made.messages() == [user([text("what is this ?"), {"type": "image"}])]
    assert Request("what is this ?", PICTURE).messages() == [user([{"type": "image"}, text("what is this ?")])]


def test_retrieved_texts_stand_before_the_last_turn():
    import dataclasses

    made = as_request([user("tell me"), {"role": "assistant", "content": "no"}, user([image(), text("what ?")])])
    told = dataclasses.replace(made, retrieved=("a bat", "a gun")).messages()
    assert told[0] == user([text("tell me")])
    assert told[-1] == user([{"type": "image"}, text("Retrieved Text: a bat a gun\nwhat ?")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"content": "x"}], "role None"),
        ([user(None)], "content is a NoneType"),
        ([user([{"type": "video", "video": "x.mp4"}])], "a video"),
        ([user([{"type": "image"}])], "names no picture"),
        ([user([{"type": "text"}])], "'text'"),
        ([{"role": "system", "content": [image()]}, user("x")], "system turn shows a picture"),
        ([{"role": "system", "content": "x"}], "Nobody asks"),
        ([{"role": "assistant", "content": "x"}], "Nobody asks"),
        ({"role": "user", "content": "x"}, "A dict is no request"),
        ([3], "A int is no request"),
        (None, "NoneType is no request"),
        (Request, "is no request"),
    ],
)
def test_what_is_no_conversation_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        as_requests(given)


def test_one_and_many_are_told_apart():
    assert is_one("tell me")
    assert is_one(Request("tell me"))
    assert is_one([user("tell me")])
    assert not is_one([])
    assert not is_one(["tell me"])
    assert not is_one([[user("tell me")]])
    assert as_requests(["tell me", Request("what ?"), [user("is it ?")]]) == [
        Request("tell me"),
        Request("what ?"),
        Request("is it ?"),
    ]


def test_turns_that_contradict_the_prompt_are_refused():
    with pytest.raises(UsageError, match="do not end in its prompt"):
        Request("another", turns=(Turn("user", ("tell me",)),))


# --- templates

KNOWS = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
    "{{ part.get('text', '<image>') }} {% endfor %}| {% endfor %}assistant:"
)
LAST = "{{ messages[-1]['content'][-1]['text'] }}"


def test_a_conversation_is_rendered_by_the_models_template(random_vlm, monkeypatch):
    monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", KNOWS)
    theirs = random_vlm.inputs.processor.apply_chat_template(
        [{**one, "content": [text(one["content"])]} for one in TALK], add_generation_prompt=True, tokenize=False
    )
    assert random_vlm.inputs.render(as_request(TALK)) == theirs
    assert theirs == "user: what is this ? | assistant: a thing | user: is it dangerous ? | assistant:"


def test_a_template_that_drops_turns_is_refused(random_vlm, monkeypatch):
    monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", LAST)
    with pytest.raises(UsageError, match="drops what the user said before: 'what is this"):
        random_vlm.inputs.render(as_request(TALK))


def test_text_between_pictures_stays_between_them(random_vlm, monkeypatch):
    monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", KNOWS)
    pictures = [Image.new("RGB", (20, 20), one) for one in ("red", "blue")]
    shown = [{"type": "image", "image": one} for one in pictures]
    asked = as_request([user([shown[0], text("what is this"), shown[1], text("and this ?")])])
    assert random_vlm.inputs.render(asked) == "user: <image> what is this <image> and this ? | assistant:"
    assert asked.pictures == tuple(pictures)


def test_a_video_is_refused_by_name():
    for part in ({"type": "video", "video": "a.mp4"}, {"type": "video_url", "video_url": {"url": "a.mp4"}}):
        with pytest.raises(UsageError, match="a video, and videos are not read"):
            as_request([user([part, text("what is this ?")])])


def test_rows_are_padded_with_what_ends_an_answer_where_nothing_else_is_for_it(random_vlm):
    processor = load_processor(random_vlm.path, random_vlm.inputs.config)
    processor.tokenizer.pad_token = None
    inputs = InputProcessor(processor, random_vlm.inputs.config)
    assert inputs.pad_token_id == inputs.eos_token_ids[0]
    asked = [Request("what ?"), Request("what is this thing ?")]
    ours, theirs = inputs.prepare(asked), random_vlm.inputs.prepare(asked)
    assert np.array_equal(ours.attention_mask, theirs.attention_mask)
    assert np.array_equal(ours.input_ids[ours.attention_mask == 1], theirs.input_ids[theirs.attention_mask == 1])
    assert (ours.input_ids[ours.attention_mask == 0] == inputs.pad_token_id).all() and (ours.attention_mask == 0).any()
