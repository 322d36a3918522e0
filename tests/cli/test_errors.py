"""A user's mistakes: what was wrong, what to do, a documented exit code, no traceback, nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from workshop import earlier

RECORD = {"id": "a", "prompt": "what is this ?", "label": "harmless", "split": "test", "response": "x"}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(RECORD))
    return path


def test_an_export_without_its_manifest_is_no_checkpoint(call, random_checkpoint, tmp_path):
    assert "is a checkpoint, and run answers" in call("run", random_checkpoint, "--prompt", "hello")[2]
    (tmp_path / "export").mkdir()
    shutil.copyfile(Path(random_checkpoint) / "config.json", tmp_path / "export" / "config.json")
    code, _, err = call("run", tmp_path / "export", "--prompt", "hello")
    assert code == 3 and "safetykit.json is missing" in err


def test_an_unknown_method_is_refused_by_name(call):
    code, _, err = call("fit", "magic", "m", "--data", "d", "-o", "o")
    assert code == 2
    assert "No such command 'magic'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "no model folder at nowhere"),
        (["fit", "vlm-guard", "m", "--data", "d", "-o", "o", "--variant", "best"], "--variant cannot be 'best'"),
        (["fit", "vlm-guard", "m", "--data", "d", "-o", "o", "--layers", "5-3"], "--layers '5-3' names no layers"),
        (["fit", "vlm-guard", "m", "--data", "nothing.jsonl", "-o", "o"], "no records at nothing.jsonl"),
        (["export", "nowhere", "-o", "o", "--precision", "fp8"], "--precision cannot be 'fp8'"),
        (["run", "nowhere", "--prompt", "hello"], "no export folder at nowhere"),
        (
            ["run", "reference:mild", "--prompt", "hello"],
            "reference:mild is a checkpoint, and run answers with exports",
        ),
        (["card", "nowhere"], "no export folder at nowhere"),
        (["verify", "nowhere"], "no export folder at nowhere"),
        (["demo", "--checkpoint", "wild"], "no reference VLM 'wild'"),
    ],
)
def test_usage_errors_exit_with_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2
    assert message in err
    assert "next:" in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("started", ["inspect nowhere", "eval nowhere", "diagnose nowhere", "fit vlm-guard nowhere"])
def test_a_model_that_is_not_there_is_refused_before_anything_is_loaded(call, tmp_path, started):
    data = [] if started.startswith("inspect") else ["--data", "reference"]
    out = ["-o", tmp_path / "out"] if data and not started.startswith("eval") else []
    code, _, err = call(*started.split(), *data, *out)
    assert code == 2 and err.startswith("error: There is no model folder at nowhere")


def test_an_unknown_option_exits_with_2(call):
    assert call("inspect", "--colour")[0] == 2


def test_an_empty_split_is_named(call, random_checkpoint, records, tmp_path):
    code, _, err = call("fit", "vlm-guard", random_checkpoint, "--data", records, "-o", tmp_path / "a")
    assert code == 2
    assert "no record of split calibration, fit" in err
    assert not (tmp_path / "a").exists()


def test_a_missing_picture_is_named_with_its_record(call, random_checkpoint, records):
    records.write_text(json.dumps({**RECORD, "image": "gone.png"}))
    code, _, err = call("eval", random_checkpoint, "--data", records)
    assert code == 2
    assert f"Record a ({records}:1): There is no picture" in err


def test_a_missing_picture_is_named_before_anything_is_loaded(call, tmp_path):
    code, _, err = call("run", tmp_path, "--prompt", "what is this ?", "--image", "gone.png")
    assert code == 2
    assert err.startswith("error: There is no picture gone.png")
    assert "loading" not in err and "answering" not in err


def test_a_malformed_record_exits_with_3(call, random_checkpoint, records):
    records.write_text('{"id": "a"}')
    code, _, err = call("eval", random_checkpoint, "--data", records)
    assert code == 3
    assert "records.jsonl:1 is not a record: prompt" in err


def test_a_truncated_adapter_exits_with_3_and_names_the_file(call, random_checkpoint, records, adapter_folder):
    path = adapter_folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = call("eval", random_checkpoint, "--data", records, "--adapter", adapter_folder)
    assert code == 3
    assert "adapter.safetensors was changed or truncated" in err


def test_an_adapter_of_another_model_exits_with_4(call, random_checkpoint, records, adapter_folder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(random_checkpoint, other)
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + " ")
    code, _, err = call("eval", other, "--data", records, "--adapter", adapter_folder)
    assert code == 4
    assert "--allow-wrong-base" in err
    code, *_ = call("eval", other, "--data", records, "--adapter", adapter_folder, "--allow-wrong-base")
    assert code == 0


def test_an_unknown_site_in_an_adapter_is_refused_before_exporting(
    call, random_vlm, random_checkpoint, make_adapter, tmp_path
):
    folder = make_adapter("decoder.layers.8").save(tmp_path / "deep")
    code, _, err = call("export", random_checkpoint, "--adapter", folder, "-o", tmp_path / "out")
    assert code == 2
    assert "decoder.layers.8 does not exist: the decoder has 8 layers" in err
    assert not (tmp_path / "out").exists()


def test_both_onnx_runtime_packages_are_refused(call, monkeypatch):
    from safetykit.export.runtime import sessions

    monkeypatch.setattr(sessions, "version", lambda name: "1.0")
    code, _, err = call("doctor")
    assert code == 2
    assert "onnxruntime and onnxruntime-gpu are both installed" in err
    assert "pip install" in err


def test_json_goes_to_stdout_and_progress_to_stderr(call, random_checkpoint, records):
    code, out, err = call("eval", random_checkpoint, "--data", records, "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["metrics"]["exact"]["n"] == 1
    assert "answering" in err


def test_the_output_folder_is_kept_unless_overwritten(call, random_checkpoint, records, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("x")
    code, _, err = call("fit", "vlm-guard", random_checkpoint, "--data", records, "-o", taken)
    assert code == 2
    assert "already exists" in err
    assert (taken / "precious").read_text() == "x"


def test_overwrite_replaces_only_what_safetykit_wrote(call, random_checkpoint, records, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("x")
    command = ("fit", "vlm-guard", random_checkpoint, "--data", records, "--overwrite", "-o")
    code, _, err = call(*command, mine)
    assert code == 2 and "was not written by safetykit: it holds notes.txt" in err and "--overwrite replaces" in err
    monkeypatch.chdir(mine)
    assert call(*command, ".")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "records.jsonl"}
    assert (mine / "notes.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["manifest.json", "safetykit.json", "channel_map.json", "adapter_config.json"])
@pytest.mark.parametrize("text", ['{"name": "my web app"}', '{"peft_type": "LORA", "r": 8}', "{", "[]"])
def test_a_file_that_is_only_called_as_ours_marks_nothing(call, random_checkpoint, records, tmp_path, name, text):
    (mine := tmp_path / "mine").mkdir()
    (mine / name).write_text(text)
    code, _, err = call("fit", "vlm-guard", random_checkpoint, "--data", records, "--overwrite", "-o", mine)
    assert code == 2 and "was not written by safetykit" in err
    assert (mine / name).read_text() == text


@pytest.mark.parametrize("what", ["data", "adapter", "around"])
def test_no_output_takes_the_place_of_its_input(call, random_checkpoint, records, adapter_folder, tmp_path, what):
    if what == "data":
        (data := tmp_path / "records").mkdir()
        shutil.move(records, data)
        (data / "manifest.json").write_bytes(earlier())  # even if it looks like one of ours
        code, _, err = call("fit", "vlm-guard", random_checkpoint, "--data", data, "-o", data, "--overwrite")
        kept = data
    else:
        kept = out = adapter_folder
        if what == "around":
            (out := tmp_path / "around").mkdir()
            (out / "safetykit.json").write_bytes(earlier())
            kept = Path(shutil.move(kept, out / "adapter"))
        code, _, err = call("export", random_checkpoint, "--adapter", kept, "-o", out, "--overwrite")
    assert code == 2 and "which is read to make it" in err
    assert any(kept.iterdir())


@pytest.mark.parametrize("command", ["export", "fit", "eval"])
def test_a_place_where_nothing_can_be_written_is_refused_at_once(call, random_checkpoint, records, tmp_path, command):
    (tmp_path / "file").write_text("x")
    started = {
        "export": ("export", random_checkpoint),
        "fit": ("fit", "vlm-guard", random_checkpoint, "--data", records),
        "eval": ("eval", random_checkpoint, "--data", records),
    }[command]
    code, _, err = call(*started, "-o", tmp_path / "file" / "x")
    assert code == 2 and "is a file, not a folder" in err and "loading" not in err
    code, _, err = call(*started, "-o", "/proc/x")
    assert code == 2 and "Nothing can be written in /proc" in err and "loading" not in err


@pytest.mark.parametrize(
    "started",
    [
        "fit vlm-guard m --data d",
        "export m",
        "eval m --data d",
        "diagnose m --data d",
        "index build d",
        "lora m --adapter a",
        "demo",
    ],
)
def test_an_empty_path_is_not_the_current_folder(call, tmp_path, monkeypatch, started):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text('out: ""\n')
    for output in (["-o", ""], ["--out", " "], ["--config", "run.yaml"]):
        code, _, err = call(*started.split(), *output)
        assert code == 2 and "An empty text names no file or folder" in err, output
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["inspect", ""], "no model folder at an empty path"),
        (["eval", "reference:mild", "--data", ""], "no records at an empty path"),
        (["verify", ""], "An empty text names no file or folder"),
        (["eval", "m", "--data", "d", "--adapter", "a", "--adapter", ""], "An empty text names no file or folder"),
    ],
)
def test_no_input_is_an_empty_path(call, tmp_path, monkeypatch, typed, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*typed)
    assert code == 2 and message in err


def test_an_interrupted_evaluation_leaves_only_its_journal_and_resumes(call, random_checkpoint, tmp_path, monkeypatch):
    from safetykit.toolkit.model.vlm import VLM

    Image.new("RGB", (48, 48), "red").save(tmp_path / "p.png")
    rows = [{**RECORD, "id": str(index), "image": "p.png"} for index in range(40)]
    data = tmp_path / "records.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    original, calls = VLM.generate, []

    def stops(self, requests, max_new_tokens=32):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(requests))
        return original(self, requests, max_new_tokens)

    out = tmp_path / "eval.json"
    command = ["eval", random_checkpoint, "--data", data, "-o", out, "--max-new-tokens", 4]
    monkeypatch.setattr(VLM, "generate", stops)
    code, _, err = call(*command)
    assert code == 130
    assert "interrupted" in err and "1 finished part is kept in" in err and "The same command goes on" in err
    assert not out.exists()
    monkeypatch.setattr(VLM, "generate", original)
    seen = []
    monkeypatch.setattr(VLM, "generate", lambda self, r, m=32: (seen.append(len(r)), original(self, r, m))[1])
    assert call(*command)[0] == 0
    assert sum(seen) == 40 - 32
    assert len(json.loads(out.read_text())["decisions"]) == 40
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
