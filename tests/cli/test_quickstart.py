"""`safetykit quickstart`: steps, what is refused before them, going on, stopping; what takes long is put in its place.

The whole of it, unreplaced, is a case of test_options.py.
"""

import json
import re
import shutil

import pytest

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.export.commands import quickstart_loop, quickstart_plan
from safetykit.export.commands.advice import not_aligned
from safetykit.export.commands.quickstart_plan import STATE
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.data.starter.made import Starter, write_starter
from safetykit.toolkit.evaluation.evaluate import Decision, Evaluation, tabulate

NO = "I'm sorry, but no."
STARTED = ("--records", 96, "--limit", 24, "--trials", 4, "--max-new-tokens", 5)
PARITY = {"passed": True, "checks": [], "flips": [], "flipped": None, "steps": 3, "precision": "fp32"}


def outcome(record, refuses):
    said = NO if refuses(record) else "Here is how."
    return Decision(
        id=record.id, carrier=record.carrier, label=record.label, tags=record.tags, text=said,
        outcome="refused" if said == NO else "answered", scores={},
    )  # fmt: skip


class Stand:
    """What stands in for models: they refuse harmful text, adapters harmful pictures, too, which is written down."""

    def __init__(self, adapter):
        self._adapter, self.done, self.aligned, self.stop = adapter, [], True, None
        self.stops_pictures = {"vlm-guard": True}

    def note(self, what):
        self.done.append(what)
        if self.stop == what:
            self.stop = None
            raise KeyboardInterrupt

    def evaluate(self, model, adapters, options, *, out, progress, say):
        self.note(out.name)
        harder = bool(adapters) and self.stops_pictures[adapters[0].name.removeprefix("adapter-")]

        def refuses(record):
            return record.label == "harmful" and self.aligned and (harder or record.carrier == "text")

        self.asked = options
        decisions = [outcome(record, refuses) for record in options.records()]
        found = Evaluation(
            model=model, split=options.split, max_new_tokens=5, rows=tabulate(decisions), decisions=decisions
        )
        write_atomic(out, canonical_json(found.model_dump(mode="json")))

    def fit(self, call, model, data, out):
        self.note(f"fit {call.method.name}")
        self.call = call
        self._adapter.save(out)

    def export(self, model, adapter, folder, options, *, vlm, answered, progress):
        self.note("export")
        self.answered = answered
        (folder / "export").mkdir(exist_ok=True)
        after = [outcome(one, lambda record: record.label == "harmful") for one in options.records()]
        rows = [[row.model_dump(mode="json") for row in tabulate(side)] for side in (answered, after)]
        return {
            "folder": str(folder / "export"),
            "card": str(folder / "export" / "README.md"),
            "report": str(folder / "export" / "report.html"),
            "parity": PARITY,
            "comparison": {"before": {"rows": rows[0]}, "after": {"rows": rows[1]}},
            "latency": {phase: {"ratio": ONE, "control": ONE, "verdict": "no cost detected"} for phase in PHASES},
        }


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """As the command makes them, once."""
    out = tmp_path_factory.mktemp("starter") / "records"
    write_starter(out, Starter(records=96, packages="none"))
    return out


ONE, PHASES = {"value": 1.0, "low": 0.9, "high": 1.1}, ("prefill", "decode")


@pytest.fixture
def stand(make_adapter, monkeypatch, starter):
    found = Stand(make_adapter())
    replaced = {"evaluate_model": found.evaluate, "fit_folder": found.fit, "export_loop": found.export}

    replaced["write_starter"] = lambda out, asked: shutil.copytree(starter, out) if asked.records == 96 else None
    for name, by in replaced.items():
        monkeypatch.setattr(quickstart_loop, name, by)
    return found


@pytest.fixture
def start(call, random_checkpoint, tmp_path, stand):
    def run(*typed, model=random_checkpoint, out="quick", as_json=True):
        code, told, err = call("quickstart", model, "-o", tmp_path / out, *typed, *(["--json"] if as_json else []))
        return code, json.loads(told) if as_json and told else " ".join(told.split()), err

    return run


def test_a_checkpoint_alone_ends_in_an_export_with_figures(start, stand, tmp_path):
    code, found, err = start(*STARTED)
    assert code == 0, err
    assert stand.done == ["before.json", "fit vlm-guard", "export"]
    steps = [line for line in err.splitlines() if line[1:3] == "/4"]
    assert [line[0] for line in steps] == list("1234") and steps[0].endswith("making records")
    assert len(load_records(tmp_path / "quick" / "records")) == 96
    assert (stand.asked.limit, stand.asked.max_new_tokens, stand.asked.split) == (24, 5, "test")
    assert (stand.call.trials, stand.call.limit, stand.call.sweep) == (4, 24, True)
    assert stand.call.settings == {"variant": "steer"}
    assert {one.id for one in stand.answered} == {one.id for one in stand.asked.records()}
    assert found["export"] == str(tmp_path / "quick" / "export") and f"run {found['export']}" in found["next"]
    assert found["judged_by"]["harmful"] == 0 and not found["stopped"] and not found["obstacle"]
    assert found["comparison"]["after"]["rows"][0]["metrics"]["attack_success"]["rate"] == 0
    said = " ".join(one["why"] for one in found["better"])
    for reason in ("name harms in the abstract", "attack success is overstated", "Few records"):
        assert reason in said


def test_the_screen_shows_before_and_after_and_what_it_stands_on(start):
    code, out, err = start(*STARTED, as_json=False)
    assert code == 0, err
    assert "vlm-guard (test) on" in out and "Before → after (the exported model)" in out
    assert "text+image" in out and "100.0 → 0.0 %" in out and "exact answers" not in out
    assert "Attack success: what is not refused, by refusal phrases; no record has a response." in out
    assert "What would make it better" in out and "Parity passed" in out


@pytest.mark.parametrize("step", ["before.json", "fit vlm-guard", "export"])
def test_the_same_command_goes_on_where_it_was_interrupted(start, stand, tmp_path, step):
    stand.stop = step
    code, _, err = start(*STARTED)
    assert code == 130 and f"what is finished is kept in {tmp_path / 'quick'}" in err and "goes on" in err
    before = list(stand.done)
    code, found, err = start(*STARTED)
    assert code == 0, err
    assert stand.done == [*before, *stand.done[len(before) :]] and stand.done[len(before)] == step
    assert [name for name in stand.done if name != step] == [
        name for name in ("before.json", "fit vlm-guard", "export") if name != step
    ]
    assert err.count("done before") == 1 + before.index(step)
    assert found["comparison"]["after"]["rows"]


def test_another_model_or_setting_in_the_same_folder_is_refused_by_name(start, stand, tmp_path):
    stand.stop = "fit vlm-guard"
    start(*STARTED)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "quick").rglob("*")}
    for typed, model, said in (
        (STARTED, "reference:mild", "was begun with model "),
        ((*STARTED[:2], "--limit", 25, *STARTED[4:]), None, "--limit 24, not with --limit 25"),
        ((*STARTED, "--method", "care"), None, "--method vlm-guard, not with --method care"),
        ((*STARTED, "--device", "cpu"), None, "--device auto, not with --device cpu"),
    ):
        typed = typed[2:] if model else typed  # a reference VLM has no starter records
        code, found, err = start(*typed, **({"model": model} if model else {}))
        assert code == 2 and said in err and "Type the same command to go on" in err, err
        assert found["error"]["exit_code"] == 2
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "quick").rglob("*")}
    state = tmp_path / "quick" / STATE
    state.write_text(state.read_text().replace("24", "25"))
    code, _, err = start(*STARTED)
    assert code == 3 and f"{STATE} was edited" in err


def test_other_weights_and_other_records_are_refused_too(start, stand, tmp_path, starter, random_checkpoint):
    shutil.copytree(starter, tmp_path / "mine")
    shutil.copytree(random_checkpoint, tmp_path / "model")
    typed = ("--data", tmp_path / "mine", "--limit", 24)
    assert start(*typed, model=tmp_path / "model")[0] == 0
    lines = (tmp_path / "mine" / "records.jsonl").read_text()
    (tmp_path / "mine" / "records.jsonl").write_text(lines.replace("Explain how to", "Say how to"))
    code, _, err = start(*typed, model=tmp_path / "model")
    assert code == 2 and re.search(r"was begun with records \w{16}, not with records \w{16}", err), err
    (tmp_path / "mine" / "records.jsonl").write_text(lines)
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, _, err = start(*typed, model=tmp_path / "model")
    assert code == 2 and "was begun with weights" in err, err


def test_what_cannot_be_is_refused_before_any_work(start, stand, tmp_path, data):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    one = {"id": "a", "prompt": "What?", "label": "harmless", "split": "test"}
    poor = data([one, {**one, "id": "b", "split": "fit"}, {**one, "id": "c", "split": "calibration"}])
    for typed, more, said in (
        ((), {"model": tmp_path / "nothing"}, "There is no model folder"),
        ((), {"model": "http://localhost:1/v1"}, "is the address of a server, and a quickstart begins with"),
        (("--method", "tga"), {}, "it learns from captioned pictures"),
        (("--method", "vlm-gard"), {}, "Did you mean 'vlm-guard'?"),
        (("--data", "reference", "--records", 96), {}, "--records does nothing without starter records"),
        (("--records", 96), {"model": "reference:mild"}, "--records does nothing without starter records"),
        (("--data", poor), {}, "harmful"),
        (("--data", tmp_path / "none"), {}, "There are no records"),
        ((), {"out": "taken"}, "was not begun by safetykit quickstart"),
        ((), {"out": "/"}, "/ is the root of the file system."),
        ((), {"out": "nul"}, "the name 'nul' is the name of a device"),
        (("--device", "cuda:99"), {}, ""),
    ):
        code, _, err = start(*typed, **more)
        assert code == 2 and said in err, (typed, err)
    assert not stand.done and sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl", "taken"]


@pytest.fixture
def texts(data):
    """Records in text, ten harmful ones in the test split."""
    count = {"fit": 4, "calibration": 4, "test": 10}
    return data(
        [
            {"id": f"{split}{label}{at}", "prompt": f"What of {at}?", "label": label, "split": split}
            for split, many in count.items()
            for label in ("harmful", "harmless")
            for at in range(many)
        ]
    )


def test_a_model_that_refuses_no_text_is_asked_and_nothing_is_fitted(start, stand, tmp_path, texts):
    stand.aligned = False
    code, found, err = start("--data", texts, *STARTED[4:])
    assert code == 0 and stand.done == ["before.json"], err
    assert re.match(r"The model refuses none of 10 harmful requests in text,.* VLM-Guard", found["stopped"])
    assert found["export"] is None and found["undefended"]["rows"] and "next" not in found
    aligned, phrases = found["better"][:2]
    assert "--method one-pass" in aligned["command"] and "before.json" in phrases["why"]
    code, out, _ = start("--data", texts, *STARTED[4:], as_json=False)
    assert code == 0 and "The model as it is" in out and "nothing was fitted" in out


def test_a_few_texts_that_are_not_refused_stop_nothing(start, stand, texts):
    stand.aligned = False
    code, found, err = start("--data", texts, *STARTED[4:], "--limit", 16)
    assert code == 0 and stand.done == ["before.json", "fit vlm-guard", "export"], err
    assert not found["stopped"] and found["export"]
    assert "None of 8 harmful requests in text was refused, which is too few" in found["better"][0]["why"]


def test_a_detector_refuses_for_a_model_that_has_no_refusal(start, stand):
    stand.aligned, stand.stops_pictures = False, {"one-pass": True}
    code, found, err = start(*STARTED, "--method", "one-pass")
    assert code == 0 and found["export"] and stand.call.inputs["refusal"].startswith("I'm sorry"), err
    assert not stand.call.sweep and stand.call.settings == {}


def test_of_several_methods_the_best_on_calibration_is_exported(start, stand, tmp_path):
    stand.stops_pictures = {"vlm-guard": False, "one-pass": True}
    code, found, err = start(*STARTED, "--method", "vlm-guard", "--method", "one-pass")
    assert code == 0, err
    assert stand.done == [
        "before.json", "fit vlm-guard", "fit one-pass",
        "calibration.json", "calibration-vlm-guard.json", "calibration-one-pass.json", "export",
    ]  # fmt: skip
    assert found["method"] == "one-pass" and found["adapter"].endswith("adapter-one-pass")
    assert [one["calibration"]["attack_success"] for one in found["fitted"]][1] == 0
    assert "6/6 exporting" in err


def test_a_model_that_cannot_be_exported_is_measured_in_pytorch(start, stand, monkeypatch, tmp_path):
    described = quickstart_plan.describe

    def unknown(model, *, fingerprint):
        return {
            **described(model, fingerprint=fingerprint),
            "export": {"supported": False, "reason": "Llamas are not exported."},
        }

    monkeypatch.setattr(quickstart_plan, "describe", unknown)
    code, found, err = start(*STARTED)
    assert code == 0 and stand.done == ["before.json", "fit vlm-guard", "after.json"], err
    assert found["export"] is None and found["obstacle"] == "Llamas are not exported."
    assert found["comparison"]["after"]["rows"] and "--adapter" in found["next"]
    assert any("Llamas are not exported. Graphs that somebody else exported" in one["why"] for one in found["better"])
    code, out, _ = start(*STARTED, as_json=False)
    assert code == 0 and "Before → after (the model in PyTorch, with its adapter)" in out


def test_a_reference_vlm_is_asked_in_its_own_language(start, stand, tmp_path, workshop):
    with workshop.few_records():
        code, found, err = start("--limit", 24, model="reference:mild")
        assert code == 0, err
        assert found["data"] == "reference" and not (tmp_path / "quick" / "records").exists() and "1/3 asking" in err
        assert found["judged_by"]["harmful"] and found["organism"]
        code, out, _ = start("--limit", 24, model="reference:mild", as_json=False)
        assert "a model organism" in out and "exact answers" in out and "by refusal phrases" not in out
        assert {one.id for one in stand.answered} <= {one.id for one in load_records(data_path("reference"), ["test"])}


def test_models_without_harmful_text_are_not_called_unaligned():
    found = Evaluation(model="m", split="test", max_new_tokens=1, rows=(), decisions=())
    assert not_aligned(found, ()) == ""
