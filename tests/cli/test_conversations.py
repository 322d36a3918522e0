"""Conversations through the command line: in records, from fit to export; and asked with `run`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.model.asking import request_of

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
        ("fit", "one-pass", random_checkpoint, "--fused-layer", 4, "-o", out),
        ("eval", random_checkpoint),
        ("diagnose", random_checkpoint, "-o", out),
        ("export", random_checkpoint, "-o", out),
    ):
        code, _, err = call(*line, "--data", path)
        assert code == 2 and "takes apart text and pictures" in err and f"{path}:" in err, (line, err)
        assert not out.exists()
