"""What an interrupted command has kept is gone on with by the same work alone, and given up in silence by none."""

import json

import pytest
from labelled_rows import rows

from safetykit.toolkit.data.journal import Journal

KEPT = {
    "eval": (".out.partial.jsonl", ["eval", "{model}", "--data", "{data}", "--split", "fit"], "records"),
    "diagnose": (".out.diagnosis.jsonl", ["diagnose", "{model}", "--data", "{data}"], "records"),
    "sweep": (".out.sweep.jsonl", ["fit", "vlm-guard", "{model}", "--data", "reference", "--sweep"], "method, records"),
}


@pytest.mark.parametrize("command", KEPT)
def test_other_work_is_refused_before_the_model_is_loaded(refused, random_checkpoint, data, tmp_path, command):
    name, words, named = KEPT[command]
    Journal(tmp_path / name, {"records": "others"}).add("part", [])
    kept = (tmp_path / name).read_bytes()
    given = {"{model}": random_checkpoint, "{data}": data(rows())}
    said = refused(*(given.get(word, word) for word in words), "-o", "out")
    assert "Finished parts of an interrupted command are kept in" in said and f"had other: {named}" in said
    assert "pass --overwrite to begin anew, or choose another output" in said
    assert (tmp_path / name).read_bytes() == kept


def test_a_fit_that_goes_on_from_nothing_ends_nothing_that_others_would_go_on_from(
    refused,
    random_checkpoint,
    tmp_path,
):
    typed = ("fit", "vlm-guard", random_checkpoint, "--data", "reference", "-o", "out")
    Journal(tmp_path / ".out.sweep.jsonl", {"method": "vlm-guard"}).add("part", {})
    assert "To go on give the same command with --sweep" in refused(*typed)
    (tmp_path / ".out.sweep.jsonl").unlink()
    (tmp_path / ".out.fitting").mkdir()
    (tmp_path / ".out.fitting/features.safetensors").write_text("x")
    assert "The training of an interrupted command is kept in" in refused(*typed)
    assert (tmp_path / ".out.fitting/features.safetensors").is_file()


def test_an_evaluation_goes_on_with_another_batch_size_but_not_with_other_records(
    call,
    random_checkpoint,
    data,
    tmp_path,
    monkeypatch,
):
    from safetykit.toolkit.model.vlm import VLM

    original, asked = VLM.generate, []

    def stops(self, requests, max_new_tokens=32):
        if sum(asked) >= 8 and stopping:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return original(self, requests, max_new_tokens)

    monkeypatch.setattr(VLM, "generate", stops)
    out, kept = tmp_path / "eval.json", tmp_path / ".eval.json.partial.jsonl"
    typed = ("eval", random_checkpoint, "--data", data(rows()), "--split", "fit", "-o", out, "--max-new-tokens", 2)
    stopping = True
    assert call(*typed, "--batch-size", 4)[0] == 130
    before = kept.read_bytes()
    for more, named in (
        (("--limit", 10), "records (--data, --split, --limit)"),
        (("--system", "x"), "--system"),
        (("--defence", "ecso"), "--defence"),
    ):
        code, _, err = call(*typed, *more)
        assert code == 2 and f"2 finished parts of an interrupted command are kept in {kept}" in err
        assert f"it had other: {named}." in err and "loading" not in err
    code, _, err = call(*typed, "--dtype", "float64")
    assert code == 2 and "it had other: device or type." in err
    assert kept.read_bytes() == before
    stopping = False
    asked.clear()
    assert call(*typed, "--batch-size", 5)[0] == 0
    assert asked == [5, 5] and not kept.exists() and len(json.loads(out.read_text())["decisions"]) == 18

    stopping = True
    Journal(kept, {"records": "others"}).add("part", [])
    code, _, err = call(*typed, "--overwrite")
    assert code == 130 and "warning: Finished parts of other work (records" in err and "were dropped" in err
