"""Records with several pictures and with conversations: read from every format, asked as they are, told when wrong."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.toolkit.data.ahead import PicturesAhead
from safetykit.toolkit.data.checking import check_records
from safetykit.toolkit.data.record import Record
from safetykit.toolkit.data.records import load_records, require_pictures
from safetykit.toolkit.data.splitting import split_records
from safetykit.toolkit.model.asking import request_of, require_answerable
from safetykit.toolkit.model.requests import Request, Turn

SHADES = {"red": (200, 0, 0), "blue": (0, 0, 200)}


def picture(name):
    shade = Image.new("RGB", (6, 4), SHADES[name])
    shade.putpixel((0, 0), (255, 255, 255))  # pictures of one colour say nothing, so that equal ones count for nothing
    return shade


def png(name):
    picture(name).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def text(words):
    return {"type": "text", "text": words}


def shown(name=None):
    return {"type": "image", "image": name} if name else {"type": "image"}


def row(name, **fields):
    return {"id": name, "label": "harmless", "split": "test", **fields}


TALK = [
    {"role": "system", "content": "be careful"},
    {"role": "user", "content": [shown(), text("what is this ?")]},
    {"role": "assistant", "content": "a kite"},
    {"role": "user", "content": [text("and"), shown(), text("is it dangerous ?")]},
]
TURNS = (
    Turn("user", (picture("red"), "what is this ?")),
    Turn("assistant", ("a kite",)),
    Turn("user", ("and", picture("blue"), "is it dangerous ?")),
)
CONVERSATION = Request("andis it dangerous ?", (picture("red"), picture("blue")), system="be careful", turns=TURNS)


def named(messages, names):
    """The same messages, whose parts name their pictures."""
    left = iter(names)
    return [
        {**one, "content": [shown(next(left)) if part["type"] == "image" else part for part in one["content"]]}
        if isinstance(one["content"], list)
        else one
        for one in messages
    ]


@pytest.fixture
def folder(tmp_path):
    for name in SHADES:
        (tmp_path / f"{name}.png").write_bytes(png(name))
    return tmp_path


def lines(folder, *rows):
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


FILES = ("red.png", "blue.png")


def as_lines(folder):
    return lines(
        folder,
        row("named", messages=named(TALK, FILES)),
        row("listed", messages=TALK, images=FILES),
        row("two", prompt="which ?", images=FILES),
        row("one", messages=TALK[1:2], image="red.png", response="a kite"),
        row("plain", prompt="what ?", image="red.png"),
    )


def table(folder, pictures):
    """The same but for the names in messages, whose pictures lie in a column."""
    red, blue = (pictures(name) for name in SHADES)
    talk = [{**one, "content": [text(one["content"])]} if isinstance(one["content"], str) else one for one in TALK]
    return pa.Table.from_pylist(
        [
            row("listed", messages=talk, images=[red, blue], prompt=None),
            row("two", messages=None, images=[red, blue], prompt="which ?"),
            row("one", messages=talk[1:2], images=[red], prompt=None, response="a kite"),
            row("text", messages=None, images=None, prompt="hello"),
        ]
    )


def as_parquet(folder):
    parquet.write_table(table(folder, lambda name: {"bytes": png(name), "path": None}), path := folder / "r.parquet")
    return path


def as_paths(folder):
    parquet.write_table(table(folder, lambda name: f"{name}.png"), path := folder / "r.parquet")
    return path


def as_arrow(folder):
    made = table(folder, png)
    path = folder / "data.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as stream:
        stream.write_table(made, max_chunksize=2)
    return path


@pytest.mark.parametrize("write", [as_lines, as_parquet, as_paths, as_arrow])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_format_gives_the_same_requests(folder, write, workers):
    found = load_records(write(folder), workers=workers)
    require_pictures(found)
    ahead = PicturesAhead(found)
    asked = {record.id: (request_of(record), request_of(record, ahead)) for record in found}
    one = Request("what is this ?", picture("red"))
    wanted = {"named": CONVERSATION, "listed": CONVERSATION, "two": Request("which ?", CONVERSATION.pictures)}
    wanted |= {"one": one, "plain": Request("what ?", picture("red")), "text": Request("hello")}
    assert asked == {name: (wanted[name],) * 2 for name in asked} and len(asked) >= 4


def test_what_a_record_says_of_its_conversation(folder):
    named, listed, two, one, plain = load_records(as_lines(folder))
    assert (named.prompt, named.carrier, named.length) == (
        "andis it dangerous ?",
        "image",
        len("be carefulwhat is this ?a kiteandis it dangerous ?"),
    )
    assert [record.plain for record in (named, two, one, plain)] == [False, False, False, True]
    assert named.image_names == listed.image_names == FILES
    assert named.digest() == listed.digest() != two.digest()
    assert repr(named).endswith("'andis it dangerous ?', messages=4, images=2)")
    assert request_of(one, answer="a kite") == Request("what is this ?", picture("red"), "a kite")
    with pytest.raises(UsageError, match="Record two .* shows 2 pictures, and one is wanted"):
        two.picture()
    again = Record.model_validate_json(named.model_dump_json(exclude_unset=True))
    assert again.messages == named.messages and again.prompt == named.prompt
    assert Record(**row("t"), messages=[{"role": "user", "content": "hello"}]).carrier == "text"


def test_order_words_and_speakers_are_part_of_the_digest(folder):
    talk = named(TALK, FILES)
    others = [
        talk[1:],
        named(TALK, FILES[::-1]),
        [*talk[:2], {"role": "assistant", "content": "a bat"}, *talk[3:]],
        [*talk[:3], {"role": "user", "content": [shown("blue.png"), text("andis it dangerous ?")]}],
    ]
    found = load_records(lines(folder, *(row(str(at), messages=one) for at, one in enumerate([talk, *others]))))
    assert len({record.digest() for record in found}) == len(found)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": "what ?", "messages": TALK[:1] + TALK[3:]}, "leave one of them out"),
        ({"prompt": "what ?", "image": "red.png", "images": ["blue.png"]}, "there are image and images"),
        ({"messages": TALK}, "show 2 pictures and name 0 of them, and the record names 0"),
        ({"messages": TALK, "images": ["red.png"]}, "show 2 pictures and name 0 of them, and the record names 1"),
        ({"messages": named(TALK, FILES), "image": "red.png"}, "name 2 of them, and the record names 1"),
        ({"messages": TALK[:3], "image": "red.png"}, "the last message is of the assistant"),
        ({"messages": [TALK[2], TALK[0], {"role": "user", "content": "x"}]}, "a system turn stands at the beginning"),
        ({"messages": [{"role": "system", "content": [shown("red.png")]}, TALK[1]]}, "the system shows a picture"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]},
            "messages.0.content.0.*a video, and videos are not read",
        ),
        ({"prompt": "what ?", "video": ["red.png"]}, "there is a video, and videos are not read"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a text has a text"),
        ({"messages": "what ?"}, "messages: Input should be"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(folder, fields, reason):
    path = lines(folder, row("bad", **fields))
    with pytest.raises(InvalidArtifact, match=f"records.jsonl:1 is not a record: .*{reason}.*prompt .or messages."):
        load_records(path)
    (fault, *_) = check_records(path).faults
    assert (fault.row, bool(fault.fix)) == (1, True)


def test_a_picture_that_is_not_there_is_named_before_work(folder):
    found = load_records(lines(folder, row("gone", messages=named(TALK, ("red.png", "gone.png")))))
    with pytest.raises(UsageError, match=r"Record gone .*no picture .*gone\.png"):
        require_pictures(found)
    assert (
        load_records(
            lines(folder, row("a", prompt="x"), row("b", prompt="x", images=["no.png"])), skip_bad_rows=True
        ).skipped
        == 1
    )


def test_a_check_compares_conversations(folder):
    path = lines(
        folder,
        row("a", messages=named(TALK, FILES)),
        row("b", messages=TALK, images=FILES, label="harmful"),
        row("c", messages=[*TALK[:1], {"role": "user", "content": "andis it dangerous ?"}], split="fit"),
        row("d", prompt="which ?", images=["red.png", "gone.png"]),
        row("e", messages=[{"role": "user", "content": [shown("blue.png")]}], split="fit"),
    )
    found = check_records(path)
    assert [(fault.row, fault.field, fault.reason) for fault in found.warnings] == [
        (2, "label", "the same request is harmless in another record"),
        (5, "image", "the same picture is in the split test, too"),
    ]
    assert [(fault.row, fault.field) for fault in found.faults] == [(4, "image")]


def test_conversations_that_show_the_same_pictures_are_not_parted(folder):
    rows = [row(f"a{at}", messages=named(TALK, FILES if at % 2 else FILES[::-1])) for at in range(4)]
    rows += [row(f"t{at}", messages=[{"role": "user", "content": f"hello {at % 3}"}]) for at in range(6)]
    found = split_records(load_records(lines(folder, *rows)), {"fit": 0.5, "test": 0.5})
    assert len(set(found[:4])) == 1
    assert all(found[4 + at] == found[7 + at] for at in range(3))


def test_forms_that_a_model_does_not_take_are_refused_before_work(folder, random_vlm, monkeypatch):
    found = load_records(as_lines(folder))
    with pytest.raises(UsageError, match=r"Record named \(.*records.jsonl:1\): .*takes apart text and pictures"):
        require_answerable(random_vlm.path, found)  # its template puts pictures first
    require_answerable(random_vlm.path, found[2:])
    parts = "{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
    every = f"{{% for m in messages %}}{{{{ m.role }}}}: {parts} {{% endfor %}}"
    monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", every)
    require_answerable(random_vlm.path, found, random_vlm.inputs)
    monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", f"{{% set m = messages[-1] %}}{parts}")
    with pytest.raises(UsageError, match=r"Record named \(.*records.jsonl:1\): .*no place for a system turn"):
        require_answerable(random_vlm.path, found, random_vlm.inputs)
    require_answerable(random_vlm.path, found[2:], random_vlm.inputs)
    monkeypatch.setattr(type(random_vlm.inputs.family), "several", False)
    with pytest.raises(UsageError, match="Record two .*takes one picture a prompt"):
        require_answerable(random_vlm.path, found[2:], random_vlm.inputs)
