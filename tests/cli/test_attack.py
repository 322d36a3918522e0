"""`safetykit attack`: it goes on where it stopped, what it makes is answered alike everywhere, errors are named."""

import json

import pytest

from safetykit.adapters.artifact.held import beside
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.attacks.pgd import Pgd
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.evaluation.evaluate import evaluate


def record(name, *, label="harmful", **more):
    return {"id": name, "prompt": f"what is {name} ?", "response": "a kite .", "label": label, "split": "test", **more}


@pytest.fixture
def asked(data):
    return data([record("this"), record("that"), record("it", group="things", tags=["look-alike"]), record("one")])


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pgd(call, random_checkpoint, asked, tmp_path):
    def run(name, *words):
        return call("attack", "pgd", random_checkpoint, "--data", asked, "-o", tmp_path / name, "--steps", 4, *words)

    return run


@pytest.mark.parametrize("words", [("--batch-size", 2), ("--batch-size", 2, "--universal")])
def test_an_interrupted_attack_goes_on_and_ends_with_the_same_bytes(pgd, tmp_path, monkeypatch, words):
    assert pgd("whole", *words)[0] == 0
    name = "on_all" if "--universal" in words else "on_each"
    run, calls = getattr(Pgd, name), []

    def interrupted(self, *given):
        if name == "on_all":
            batches, state, keep, told = given

            def then_stop(state):
                keep(state)
                raise KeyboardInterrupt

            return run(self, batches, state, then_stop if state is None else keep, told)
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *given)

    monkeypatch.setattr(Pgd, name, interrupted)
    code, _, err = pgd("parts", *words)
    kept = beside(tmp_path / "parts", "partial.jsonl")
    assert code == 130 and "goes on where it stopped" in err and kept.exists() and not (tmp_path / "parts").exists()
    code, _, err = pgd("parts", *words, "--seed", 5)
    assert code == 2 and "it had other: --seed" in err
    assert pgd("parts", *words)[0] == 0 and not kept.exists()
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_what_it_makes_says_where_it_comes_from_and_is_answered_alike_in_the_export(
    pgd, call, random_vlm, random_base, tmp_path
):
    code, out, err = pgd("out", "--json")
    value = json.loads(out)
    assert code == 0 and value["next"].endswith("--split test") and "attacking" in err
    found = load_records(tmp_path / "out")
    assert [one.id for one in found] == [f"{name}-pgd-eps16" for name in ("this", "that", "it", "one")]
    assert [one.group for one in found] == ["this", "that", "things", "one"]
    assert found[2].tags == ("look-alike", "attack:pgd-eps16", "from:text")
    assert call("data", "check", tmp_path / "out")[0] == 0
    here, there = (
        evaluate(model, tmp_path / "out", max_new_tokens=6)
        for model in (random_vlm, OnnxVLM.from_pretrained(random_base))
    )
    assert [one.text for one in here.decisions] == [one.text for one in there.decisions]
    groups = ["all", "adversarial", "adversarial/look-alike", "adversarial/attack:pgd-eps16", "adversarial/from:text"]
    assert [row.group for row in there.rows] == groups


def test_what_is_not_attacked_is_counted(call, random_checkpoint, data, tmp_path):
    said = [{"role": "user", "content": "what is this ?"}]
    talk = {**record("talk"), "messages": said}
    del talk["prompt"]
    path = data([record("this"), record("mild", label="harmless"), talk])
    code, out, _ = call(
        "attack", "pgd", random_checkpoint, "--data", path, "-o", tmp_path / "out", "--steps", 1, "--json"
    )
    assert code == 0 and json.loads(out)["left_out"] == {"harmless": 1, "conversation": 1}
    code, out, _ = call("eval", random_checkpoint, "--data", tmp_path / "out", "--max-new-tokens", 2, "--json")
    assert code == 0 and "next" not in json.loads(out), "there is nothing to fit on among what was attacked"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epsilon", "17"], "--epsilon cannot be '17'. It is none, levels of 255 such as 16/255, or a share"),
        (["--epsilon", "0.001"], "--epsilon 0.001 is less than a level of 8 bits."),
        (["--epsilon", "nan"], "--epsilon cannot be 'nan'."),
        (["--steps", "2", "--step-size", "0.0001"], "--steps 2 of --step-size 0.0001 change nothing in a file"),
        (["--step-size", "0"], "--step-size cannot be '0'. It is auto, levels of 255"),
        (["--objective", "toxi"], "Did you mean 'toxic'?"),
        (["--objective", "refusal", "--target", "Yes"], "--target does nothing with --objective refusal."),
        (["--objective", "refusal", "--target-tokens", "3"], "--target-tokens does nothing with --objective refusal."),
        (["--evade", "2"], "--evade does nothing without an adapter that has a gate or a detector."),
        (["--allow-wrong-base"], "--allow-wrong-base does nothing without an adapter."),
        (["--allow-uncorrected-detector"], "--allow-uncorrected-detector does nothing without a detector."),
        (["--picture", "nothing.png"], "There is no picture nothing.png."),
        (["--steps", "0"], "--steps cannot be 0. It is at least 1."),
    ],
)
def test_what_is_wrong_is_named_before_weights_are_loaded(refused, random_checkpoint, asked, words, said):
    err = refused("attack", "pgd", random_checkpoint, "--data", asked, "-o", "out", *words)
    assert said in " ".join(err.split())


@pytest.mark.parametrize(
    ("records", "words", "said"),
    [
        ([record("a", label="harmless")], [], "None of 1 records can be attacked."),
        ([{**record("a"), "response": None}], [], "has no response to aim at. Give harmful records responses"),
        ([record("a", image="../data")], [], "There is no picture"),
        ([record("a", image="grey.png")], ["--objective", "refusal"], "There is no harmful text record"),
        ([record("a", image="grey.png")], ["--picture", "grey.png"], "--picture does nothing: all records have"),
    ],
)
def test_records_that_cannot_be_attacked_are_named(refused, random_checkpoint, data, tmp_path, records, words, said):
    from safetykit.toolkit.attacks.pixels import grey

    grey(64).save(tmp_path / "grey.png")
    err = refused("attack", "pgd", random_checkpoint, "--data", data(records), "-o", "out", *words)
    assert said in " ".join(err.split())


def test_a_model_whose_pictures_are_mixed_is_refused_by_name(refused, asked, tmp_path):
    from safetykit.bench.zoo import build

    err = refused("attack", "pgd", build("smolvlm", tmp_path / "smolvlm"), "--data", asked, "-o", "out")
    assert "No gradient can go through the picture processor of this model (smolvlm" in err


def test_corruptions_keep_pairs_and_leave_out_texts(call, tmp_path):
    out = tmp_path / "out"
    words = ("--kind", "rotate", "--kind", "rotate", "--severity", "2", "--limit", "9", "--json")
    code, printed, err = call("attack", "corrupt", "reference", "-o", out, *words)
    value, found = json.loads(printed), {one.id: one for one in load_records(out)}
    assert code == 0 and value["made"] == {"rotate-2": 9} and "show no picture; they were left out" in err
    assert all(one.pair is None or one.pair in found for one in found.values())
    assert all(one.tags[-2:] == ("corruption:rotate", "corruption:rotate-2") for one in found.values())
    first = next(iter(found.values()))
    given = {one.id: one for one in load_records(data_path("reference"), ["test"])}[first.id.removesuffix("-rotate-2")]
    assert (first.prompt, first.label, first.carrier) == (given.prompt, given.label, given.carrier)
    assert first.picture().size == given.picture().size
    code, _, err = call("attack", "corrupt", "reference", "-o", out)
    assert code == 2 and "--overwrite" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "rotat"], "Did you mean 'rotate'?"),
        (["--severity", "6"], "Invalid value for '--severity'"),
        (["--split", "fit"], "holds no record of split fit"),
        ([], "None of 4 records of split test shows a picture."),
    ],
)
def test_what_cannot_be_corrupted_is_named(refused, asked, words, said):
    assert said in " ".join(refused("attack", "corrupt", asked, "-o", "out", *words).split())
