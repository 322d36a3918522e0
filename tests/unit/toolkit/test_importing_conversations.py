"""Rows with chat messages and several pictures become records with them; what does not fit is told with its place."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image
from published import draw, write_json, write_lines

from safetykit.adapters.errors import InvalidArtifact
from safetykit.toolkit.data.importers import Source, get_importer
from safetykit.toolkit.data.importing import import_records
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.model.asking import request_of

TEXT, PICTURE = {"type": "text", "text": "what is this ?"}, {"type": "image"}
TALK = [
    {"role": "system", "content": "be careful"},
    {"role": "user", "content": [PICTURE, TEXT]},
    {"role": "assistant", "content": [{"type": "text", "text": "a kite"}]},
    {"role": "user", "content": [PICTURE, {"type": "text", "text": "and this ?"}]},
    {"role": "assistant", "content": "a bat"},
]
ROW = {"id": "a", "label": "safe"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for at, name in enumerate(("a.png", "b.png")):
        draw(tmp_path / "in" / name, at)
    return tmp_path / "in"


def read(kind, folder, **said):
    importer, out = get_importer(kind), folder.parent / "out"
    made = import_records(importer, Source(folder, **said), out)
    return made, load_records(out)


def asked(record):
    """Its turns with pictures by their first pixel, so that their order shows."""
    request = request_of(record)
    said = [
        [one.getpixel((0, 0)) if isinstance(one, Image.Image) else one for one in turn.content]
        for turn in request.turns
    ]
    return request.system, said


@pytest.fixture
def talk(folder):
    first, second = (Image.open(folder / name).convert("RGB").getpixel((0, 0)) for name in ("a.png", "b.png"))
    assert first != second
    return "be careful", [[first, "what is this ?"], ["a kite"], [second, "and this ?"]]


def named(*names):
    left = iter(names)
    return [
        {**one, "content": [{**PICTURE, "image": next(left)} if part is PICTURE else part for part in one["content"]]}
        if isinstance(one["content"], list)
        else one
        for one in TALK
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "images": ["a.png", "b.png"]},
        {"messages": named("a.png", "b.png")},
        {"messages": TALK[:-1], "images": ["a.png", "b.png"], "response": "a bat"},
    ],
)
def test_messages_become_a_conversation_with_its_answer(folder, talk, row):
    write_lines(
        folder / "mine.jsonl", [{**ROW, **row}, {**ROW, "id": "b", "messages": [{"role": "user", "content": "hi"}]}]
    )
    made, (record, plain) = read("json", folder)
    assert made.counts == {"test/image/harmless": 1, "test/text/harmless": 1} and made.pictures == 2
    assert not any(made.unused.values())
    assert (record.id, record.response, asked(record)) == ("json/a", "a bat", talk)
    assert (plain.prompt, plain.response) == ("hi", None)


def test_parquet_holds_the_pictures_of_conversations(folder, talk):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    messages = [
        {**one, "content": one["content"] if isinstance(one["content"], list) else [{**TEXT, "text": one["content"]}]}
        for one in TALK
    ]
    images = [{"bytes": (folder / name).read_bytes(), "path": None} for name in ("a.png", "b.png")]
    rows = [
        {**ROW, "messages": messages, "images": images},
        {"id": "b", "label": "unsafe", "messages": [*messages[:1], {"role": "user", "content": [TEXT]}], "images": []},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "mine.parquet")
    _, (record, other) = read("parquet", folder)
    assert asked(record) == talk and (other.label, other.prompt) == ("harmful", "what is this ?")


def test_several_pictures_stand_before_a_prompt(folder):
    write_lines(folder / "mine.jsonl", [{**ROW, "prompt": "which ?", "images": ["b.png", "a.png"]}])
    _, (record,) = read("json", folder)
    assert (record.prompt, record.carrier, len(record.images)) == ("which ?", "image", 2)


def test_messages_beside_a_prompt_are_told_as_not_used(folder):
    write_lines(folder / "mine.jsonl", [{**ROW, "prompt": "which ?", "messages": TALK}])
    made, (record,) = read("json", folder)
    assert record.prompt == "which ?" and made.unused["columns"] == ["messages"]


def test_llava_conversations_keep_pictures_where_they_stand(folder):
    turns = [{"from": "human", "value": "<image>\nand <image>\nwhich ?"}, {"from": "gpt", "value": "the first"}]
    alone = [{"from": "human", "value": "<image>"}, {"from": "human", "value": "what ?"}, *turns[1:]]
    rows = [{"id": "a", "image": ["a.png", "b.png"], "conversations": turns}]
    rows += [{"id": "b", "image": "a.png", "conversations": alone}]
    write_json(folder / "mine.json", rows)
    _, (record, other) = read("llava", folder)
    kinds = [part.text or part.type for part in record.messages[0].content]
    assert (kinds, record.response, len(record.images)) == (["image", "and", "image", "which ?"], "the first", 2)
    assert (other.prompt, other.image is None, other.messages) == ("what ?", False, ())
    rows[0]["image"] = ["a.png"]
    shutil.rmtree(folder.parent / "out")
    write_json(folder / "mine.json", rows[:1])
    with pytest.raises(InvalidArtifact, match="conversations: shows 2 pictures, and the row names 1"):
        read("llava", folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": TALK}, "line 1, messages: shows 2 pictures, and the row names 0"),
        ({"messages": named("a.png", "c.png")}, r"image: the picture .*c\.png is missing"),
        ({"messages": named("a.png", "../b.png")}, r"image: the picture .* leads out of the folder"),
        ({"messages": TALK[:1]}, "messages: has no request of a user at its end"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages 1, role: cannot be 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "content 1, type: cannot be 'video'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content: is no list of objects"),
        ({"chat": "what ?"}, "chat: is no list of objects"),
        (
            {"messages": [TALK[1], TALK[0], TALK[3]], "images": ["a.png", "b.png"]},
            "a system turn stands at the beginning",
        ),
        ({"prompt": "which ?", "shown": "a.png"}, "shown: is no list of pictures.*--column image=shown"),
        ({"prompt": "which ?", "images": ["a.png"], "image": "b.png"}, "images: holds pictures beside that of another"),
        ({"prompt": "which ?", "images": [3]}, "images: is int, and no picture"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_place(folder, row, said):
    write_lines(folder / "mine.jsonl", [{**ROW, **row}])
    columns = {"messages": "chat"} if "chat" in row else {"images": "shown"} if "shown" in row else {}
    with pytest.raises(InvalidArtifact, match=said):
        read("json", folder, columns=columns)
    assert not (folder.parent / "out").exists()
