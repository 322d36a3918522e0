"""Conversations through the command line: in records, from fit to export; and asked with `run`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from safetykit.toolkit.data.pictures import open_picture
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.inputs import InputProcessor

WORDS = ["what is this ?", "is it dangerous ?", "tell me", "describe this", "how do i use this ?"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"a": (40, 20), "b": (18, 30)}.items():
        pixels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def turn(role, words, *pictures):
    parts = [{"type": "image", "image": f"{name}.png"} for name in pictures]
    return {"role": role, "content": [*parts, {"type": "text", "text": words}]}


@pytest.fixture(scope="module")
def records(pictures):
    """Of each split and label a conversation with two pictures, a prompt with two, and plain ones."""
    lines = []
    for split in ("fit", "calibration", "test"):
        for at, words in enumerate(WORDS * 2):
            label = ("harmful", "harmless")[at % 2]
            one = {"id": f"{split}-{at}", "label": label, "split": split, "response": "a knife"}
            forms = [
                {"messages": [turn("user", words, "a"), turn("assistant", "a knife"), turn("user", WORDS[1], "b")]},
                {"prompt": words, "images": ["a.png", "b.png"]},
                {"prompt": words, "image": "b.png"},
                {"messages": [turn("user", words), turn("assistant", "no"), turn("user", WORDS[0])]},
                {"prompt": words},
            ]
            lines.append(json.dumps(one | forms[at % len(forms)]))
    (pictures / "records.jsonl").write_text("\n".join(lines) + "\n")
    return pictures / "records.jsonl"


def test_conversations_in_records_go_from_fit_to_export(
    call, records, random_checkpoint, random_base, adapter_folder, tmp_path
):
    """Checked, fitted on, exported with parity and canaries, and decided alike by the model and the export."""
    probe, export = tmp_path / "probe", tmp_path / "export"  # a random model is too unsure for canaries of a probe
    code, out, err = call("data", "check", records, "--json")
    assert (code, json.loads(out)["faults"]) == (0, []), err
    code, _, err = call(
        "fit", "one-pass", random_checkpoint, "--data", records, "--fused-layer", 4, "--refusal", "no .", "-o", probe
    )
    assert code == 0, err
    typed = ("--adapter", adapter_folder, "--data", records, "--max-new-tokens", 3)
    code, out, err = call(
        "export", random_checkpoint, "--base-onnx", random_base, *typed, "--canaries", 3, "-o", export, "--json"
    )
    assert code == 0 and json.loads(out)["parity"]["passed"], err
    canaries = json.loads((export / "canary.json").read_text())["canaries"]
    plain = {record.prompt for record in load_records(records) if record.plain}
    assert len(canaries) == 3 and {one["prompt"] for one in canaries} & plain
    decisions = []
    for asked in ((random_checkpoint, *typed), (export, *typed[2:])):
        code, _, err = call("eval", *asked, "-o", tmp_path / f"{len(decisions)}.json")
        assert code == 0, err
        decisions.append(json.loads((tmp_path / f"{len(decisions)}.json").read_text())["decisions"])
    ours, theirs = ([(one["id"], one["text"], one["outcome"]) for one in some] for some in decisions)
    assert ours == theirs and len(ours) == 10


def test_copies_of_records_keep_conversations_and_their_pictures(call, records, tmp_path):
    code, _, err = call("data", "split", records, "-o", tmp_path / "split", "--by", "pair", "--json")
    assert code == 0, err
    before, after = load_records(records), load_records(tmp_path / "split")
    assert len(list((tmp_path / "split" / "pictures").iterdir())) == 2
    assert [request_of(one) for one in before] == [request_of(one) for one in after]
    code, _, err = call("data", "show", records, "-o", tmp_path / "sheet.html")
    sheet = (tmp_path / "sheet.html").read_text()
    assert code == 0 and sheet.count("<strong>assistant</strong> a knife") == 6, err
    assert sheet.count("<img ") == sum(len(record.image_names) for record in before)


def test_a_conversation_that_the_template_breaks_is_refused_before_a_model_is_loaded(
    call, pictures, random_checkpoint, tmp_path, monkeypatch
):
    """The reference VLM's template puts the pictures of a turn before its text."""
    from safetykit.toolkit.model.vlm import VLM

    monkeypatch.setattr(VLM, "from_pretrained", lambda *_, **__: pytest.fail("a model is loaded"))
    parts = [{"type": "image", "image": name} for name in ("a.png", "b.png")]
    between = [parts[0], {"type": "text", "text": "and"}, parts[1], {"type": "text", "text": "?"}]
    path = pictures / "between.jsonl"
    lines = [
        {"id": f"{split}-{label}", "label": label, "split": split, "messages": [{"role": "user", "content": between}]}
        for split in ("fit", "calibration", "test")
        for label in ("harmful", "harmless")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    for line in (
        ("fit", "one-pass", random_checkpoint, "--fused-layer", 4, "--refusal", "no .", "-o", out),
        ("eval", random_checkpoint),
        ("diagnose", random_checkpoint, "-o", out),
        ("export", random_checkpoint, "-o", out),
    ):
        code, _, err = call(*line, "--data", path)
        assert code == 2 and "takes apart text and pictures" in err and f"{path}:" in err, (line, err)
        assert not out.exists()


# --- run


@pytest.fixture
def asked(monkeypatch):
    """The tokens of each batch that is prepared, without padding."""
    found, prepare = [], InputProcessor.prepare

    def spied(self, requests):
        inputs = prepare(self, requests)
        masked = zip(inputs.input_ids, inputs.attention_mask, strict=True)
        found.append([ids[mask == 1].tolist() for ids, mask in masked])
        return inputs

    monkeypatch.setattr(InputProcessor, "prepare", spied)
    return found


@pytest.fixture
def theirs(random_vlm, pictures):
    """The tokens that transformers' own processor makes of messages whose pictures are files."""

    def tokens(messages, **options):
        def opened(part):
            return {**part, "image": open_picture(part["image"], pictures)} if part["type"] == "image" else part

        made = [{**one, "content": [opened(part) for part in one["content"]]} for one in messages]
        found = random_vlm.inputs.processor.apply_chat_template(
            made, tokenize=True, return_dict=True, return_tensors="np", **options
        )
        return np.asarray(found["input_ids"])[0].tolist()

    return tokens


@pytest.mark.parametrize("shown", [(), ("a",)])
def test_run_puts_the_system_text_where_transformers_does(call, asked, theirs, random_base, pictures, shown):
    images = [word for name in shown for word in ("--image", pictures / f"{name}.png")]
    code, out, err = call(
        "run", random_base, "--prompt", WORDS[0], "--system", WORDS[1], *images, "--max-new-tokens", 2, "--json"
    )
    assert code == 0 and json.loads(out)[0]["prompt"] == WORDS[0], err
    messages = [turn("system", WORDS[1]), turn("user", WORDS[0], *shown)]
    wanted = [theirs(messages, add_generation_prompt=True)]
    assert asked == [wanted, wanted], "once before the export's files are read, and once to be answered"


def test_run_answers_a_conversation_in_a_file(call, asked, theirs, random_base, pictures):
    """Up to the user's last turn, or as far as the answer is given; a content may be a string."""
    talk = [turn("user", WORDS[0], "a"), turn("assistant", "a knife"), turn("user", WORDS[1], "b")]
    begun = [*talk, turn("assistant", "it is")]
    path = pictures / "talk.json"
    for messages, options in (
        ([turn("system", "tell me"), *talk], {"add_generation_prompt": True}),
        (begun, {"continue_final_message": True}),
    ):
        given = [{**one, "content": one["content"][0]["text"]} if one["role"] != "user" else one for one in messages]
        path.write_text(json.dumps(given))
        code, out, err = call("run", random_base, "--messages", path, "--max-new-tokens", 2, "--json")
        assert code == 0 and json.loads(out)[0]["prompt"] == WORDS[1], err
        assert asked.pop() == [theirs(messages, **options)]


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        ((), "There is nothing to answer. next: Pass --prompt, or a conversation with --messages"),
        (("--messages", "talk.json", "--prompt", "x"), "--prompt and --messages both say what is asked"),
        (("--messages", "talk.json", "--image", "a.png"), "--image does nothing with --messages"),
        (("--messages", "talk.json", "--system", "x"), "--system does nothing with --messages"),
        (("--messages", "gone.json"), "gone.json cannot be read as messages"),
        (("--messages", "a.png"), "a.png cannot be read as messages"),
        (("--messages", "one.json"), "one.json holds no list of messages"),
        (("--messages", "lost.json"), "lost.json: There is no picture"),
        (("--messages", "last.json"), "last.json: Nobody asks anything"),
        (("--messages", "between.json"), "takes apart text and pictures"),
    ],
)
def test_run_refuses_what_is_no_conversation(call, random_base, pictures, typed, refused):
    between = [{"type": "text", "text": "x"}, *turn("user", "y", "a")["content"]]
    files = {
        "talk": [turn("user", "x")],
        "one": {"role": "user"},
        "lost": [turn("user", "x", "gone")],
        "last": [turn("assistant", "x")],
        "between": [{"role": "user", "content": between}],
    }
    for name, value in files.items():
        (pictures / f"{name}.json").write_text(json.dumps(value))
    words = [pictures / word if word.endswith((".json", ".png")) else word for word in typed]
    code, out, err = call("run", random_base, *words)
    assert (code, out) == (2, "") and refused in " ".join(err.split()), err


def test_run_drops_the_oldest_turns_of_a_conversation_that_is_too_long(call, asked, theirs, random_base, pictures):
    """Only if asked to, by whole exchanges, never the system turn or the last turn; and it is said."""
    system = turn("system", "tell me")
    exchanges = [
        [turn("user", WORDS[0], "a"), turn("assistant", "a knife")],
        [turn("user", "x"), turn("assistant", "y")],
    ]
    last = turn("user", WORDS[1], "b")
    path = pictures / "long.json"
    path.write_text(json.dumps([system, *exchanges[0], *exchanges[1], last]))
    left = [[system, *exchanges[0], *exchanges[1], last], [system, *exchanges[1], last], [system, last]]
    wanted = [theirs(messages, add_generation_prompt=True) for messages in left]
    typed = ("run", random_base, "--messages", path, "--max-new-tokens", 1, "--json", "--max-prompt-tokens")
    code, _, err = call(*typed, len(wanted[0]) - 1)
    assert code == 2 and f"The prompt has {len(wanted[0])} tokens" in err
    for dropped, most in ((0, len(wanted[0])), (2, len(wanted[0]) - 1), (2, len(wanted[1])), (4, len(wanted[1]) - 1)):
        code, out, err = call(*typed, most, "--truncate")
        (answer,) = json.loads(out)
        assert (code, answer["dropped_turns"], answer["dropped_pictures"]) == (0, dropped, min(dropped, 1)), err
        said = f"its first {dropped} turns were dropped, with 1 of its pictures"
        assert (said in err, "dropped" in err) == (bool(dropped), bool(dropped))
        assert asked[-1] == [wanted[dropped // 2]]
    code, out, err = call(*typed, len(wanted[2]) - 1, "--truncate")
    assert code == 2 and f"The prompt has {len(wanted[2])} tokens" in json.loads(out)["error"]["message"]
    for asked in (("run", random_base, "--prompt", "x"), ("eval", random_base, "--data", "reference")):
        code, _, err = call(*asked, "--truncate")
        assert code == 2 and "--truncate does nothing without" in err
    code, _, err = call("run", random_base, "--prompt", "x", "--truncate")
    assert code == 2 and "--truncate does nothing without --messages" in err


def test_run_reads_a_long_prompt_in_parts(call, random_base, monkeypatch):
    """As many calls as it takes, with the answer of one; refused, with the reason, where that would be another."""
    from safetykit.export.runtime import graphs

    calls, called = [], graphs.Graphs._called

    def noted(self, feeds):
        calls.append(feeds["inputs_embeds"].shape[1])
        return called(self, feeds)

    monkeypatch.setattr(graphs.Graphs, "_called", noted)
    typed = ("run", random_base, "--prompt", " ".join(WORDS), "--max-new-tokens", 3, "--json")
    (_, whole, _), first = call(*typed), max(calls)
    calls.clear()
    code, out, err = call(*typed, "--prompt-chunk", 7)
    assert code == 0 and json.loads(out) == json.loads(whole), err
    assert max(calls) == 7 < first <= sum(calls)
    code, _, err = call(*typed, "--prompt-chunk", 2)
    assert code == 2 and "--prompt-chunk" in err
    monkeypatch.setattr(graphs, "why_whole", lambda *_: "a gate acts on all of it")
    code, out, err = call(*typed, "--prompt-chunk", 7)
    assert code == 2 and "read in one call: a gate acts on all of it" in json.loads(out)["error"]["message"]
