"""An option that cannot act in the given combination is refused by name; none is accepted and ignored."""

import json
from types import SimpleNamespace

import pytest

from safetykit.adapters import Adapter
from safetykit.adapters.artifact.manifest import DetectorInfo
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.ops.branch import Branch

RECORD = {"id": "a", "prompt": "what is this ?", "label": "harmless", "split": "test", "response": "x"}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(RECORD))
    return path


@pytest.fixture
def make_detector(make_adapter):
    def make(*correctors: Adapter) -> Adapter:
        tensors = {"weight": torch_ones(), "bias": torch_ones()[0]}
        branch = Branch("FusedProjection", Site.block(1), Site.block(2), tensors)
        info = make_adapter().info.model_copy(
            update={"method": "sasa", "hyperparameters": {"corrected_by": [describe_corrector(c) for c in correctors]}}
        )
        return Adapter(info, branch=branch, detector=DetectorInfo(threshold=0.0, refusal="no", refusal_token=1))

    return make


def torch_ones():
    import torch

    return torch.ones(128)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--model", "reference:mild"),
        ("--adapter", "a"),
        ("--swap", "a"),
        ("--provider", "CPUExecutionProvider"),
        ("--external-index", "i"),
        ("--device", "cpu"),
        ("--dtype", "float32"),
        ("--device-map", "auto"),
    ],
)
def test_verifying_an_adapter_reads_no_model(call, adapter_folder, option, value):
    code, _, err = call("verify", adapter_folder, option, value)
    assert code == 2
    assert f"{option} does nothing without an export: this folder is an adapter" in err
    assert call("verify", adapter_folder)[0] == 0


def test_verify_names_what_an_adapter_does_not(call, adapter_folder):
    (adapter_folder / "notes.txt").write_text("x")
    (adapter_folder / "more.safetensors").write_text("x")
    code, _, err = call("verify", adapter_folder)
    assert code == 3 and "2 files that its manifest does not name: more.safetensors, notes.txt" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--adapter", "a"),
        ("--provider", "CPUExecutionProvider"),
        ("--external-index", "i"),
        ("--parity-rows", "1"),
    ],
)
def test_verifying_without_a_checkpoint_runs_nothing(call, tmp_path, option, value):
    code, _, err = call("verify", tmp_path, option, value)
    assert code == 2
    assert f"{option} does nothing without the checkpoint (--model)" in err


def test_a_swap_is_verified_against_the_checkpoint(call, tmp_path):
    code, _, err = call("verify", tmp_path, "--swap", "a")
    assert code == 2 and "needs the checkpoint" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--provider", "CPUExecutionProvider"], "--provider does nothing without an export"),
        (["--swap", "a"], "A checkpoint has no adapter to swap"),
        (["--external-index", "i"], "--external-index does nothing without an adapter that searches"),
        (["--allow-wrong-base"], "--allow-wrong-base does nothing without an adapter"),
        (["--allow-uncorrected-detector"], "--allow-uncorrected-detector does nothing without a detector"),
        (["--overwrite"], "--overwrite does nothing without a file to write"),
        (["--split", "tset"], "Did you mean 'test'?"),
    ],
)
def test_a_checkpoint_is_evaluated_in_pytorch(call, random_checkpoint, records, options, message):
    code, _, err = call("eval", random_checkpoint, "--data", records, *options)
    assert code == 2
    assert message in err


def test_an_evaluation_is_overwritten_only_if_asked(call, random_checkpoint, records, tmp_path):
    out = tmp_path / "evaluation.json"
    out.write_text("precious")
    command = ("eval", random_checkpoint, "--data", records, "--max-new-tokens", 2, "-o", out)
    code, _, err = call(*command)
    assert code == 2 and "already exists" in err and "--overwrite" in err
    assert "loading" not in err and "answering" not in err
    code, _, err = call(*command, "--overwrite")
    assert code == 2 and "was not written by this command" in err
    assert out.read_text() == "precious"
    out.unlink()
    for new in (2, 1):
        assert call(*command[:-3], new, "-o", out, "--overwrite")[0] == 0
        assert json.loads(out.read_text())["max_new_tokens"] == new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "fit"], "--split does nothing without --data"),
        (["--limit", 3], "--limit does nothing without --data"),
        (["--batch-size", 3], "--batch-size does nothing without records"),
        (["--device", "cpu:1"], "It is auto, cpu, cuda, cuda:N or mps. Did you mean 'cpu'?"),
        (["--dtype", "flaot32"], "Did you mean 'float32'?"),
        (["--max-memory", "cpu=1GiB"], "--max-memory does nothing with --device-map left out"),
        (["--device", "cpu", "--device-map", "auto"], "--device does nothing with --device-map auto"),
        (["--max-new-tokens", 3], "--max-new-tokens does nothing without records"),
        (["--max-flips", 0.5], "--max-flips does nothing without records"),
        (["--mode", "hotswap"], "Did you mean 'hot-swap'?"),
        (["--layout", "genie"], "Did you mean 'genai'?"),
        (["--base-license", "Apache 2.0"], "cannot be a licence"),
        (["--base-model", "my model"], "cannot be the name of a base model"),
    ],
)
def test_an_export_without_records(call, random_checkpoint, adapter_folder, tmp_path, options, message):
    code, _, err = call("export", random_checkpoint, "--adapter", adapter_folder, "-o", tmp_path / "out", *options)
    assert code in (2, 3)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("run", "--prompt", "hello"), ("verify", "--model", "reference:mild")])
def test_only_what_is_swapped_in_can_be_an_uncorrected_detector(call, tmp_path, command):
    code, _, err = call(command[0], tmp_path, *command[1:], "--allow-uncorrected-detector")
    assert code == 2
    assert "--allow-uncorrected-detector does nothing without an adapter to swap in (--swap)" in err


@pytest.mark.parametrize(
    ("options", "idle"),
    [(("--text", "a", "--adapter", "b"), "--adapter"), (("--image", "a", "--encoder", "b"), "--encoder")],
)
def test_an_index_is_searched_by_a_text_or_by_a_picture(call, options, idle):
    code, _, err = call("index", "search", "nowhere", *options)
    assert code == 2
    assert f"{idle} does nothing with {options[0]}" in err


@pytest.mark.parametrize(("option", "value"), [("--seed", 3), ("--top-p", 0.5)])
def test_greedy_answers_draw_nothing(call, tmp_path, option, value):
    code, _, err = call("run", tmp_path, "--prompt", "hello", option, value)
    assert code == 2
    assert f"{option} does nothing with --temperature 0.0" in err


@pytest.mark.parametrize(
    ("typed", "limit"),
    [
        (("run", "nowhere", "--prompt", "hello", "--temperature", 1, "--seed", -1), "at least 0"),
        (("diagnose", "reference:mild", "--data", "reference", "-o", "map", "--seed", 2**32), "at most 4294967295"),
        (("diagnose", "reference:mild", "--data", "reference", "-o", "map", "--pairs", 7), "at least 8"),
    ],
)
def test_numbers_that_no_run_takes_are_refused_before_it(call, tmp_path, monkeypatch, typed, limit):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*typed)
    assert code == 2
    assert f"{typed[-2]} cannot be {typed[-1]}.\nnext:  It is {limit}." in err and "loading" not in err


def test_a_seed_that_no_generator_takes_is_refused_in_python(random_vlm):
    from safetykit.adapters.errors import UsageError
    from safetykit.toolkit.diagnosis import diagnose

    with pytest.raises(UsageError, match="seed cannot be -1"):
        random_vlm.generate("hello", do_sample=True, seed=-1)
    with pytest.raises(UsageError, match="seed cannot be -1"):
        diagnose(random_vlm, [], seed=-1)


def test_a_detector_is_evaluated_beside_its_own_correctors_only(
    call, random_checkpoint, records, make_adapter, make_detector, tmp_path
):
    guard, own = make_adapter(), tmp_path / "own"
    make_detector(guard).save(own)
    guard.save(tmp_path / "guard")
    make_detector().save(tmp_path / "plain")
    command = ("eval", random_checkpoint, "--data", records, "--max-new-tokens", 2, "--adapter")
    code, _, err = call(*command, tmp_path / "guard", "--adapter", tmp_path / "plain")
    assert code == 2
    fits = f"safetykit fit sasa {random_checkpoint} --data {records} --with {tmp_path / 'guard'} -o DETECTOR"
    assert fits in err
    code, _, err = call(*command, own)
    assert code == 2 and "is to run without a corrector" in err
    assert call(*command, tmp_path / "guard", "--adapter", own)[0] == 0
    code, _, err = call(*command, own, "--allow-uncorrected-detector")
    assert code == 0 and "warning: a detector was accepted" in err


@pytest.mark.parametrize(
    ("text", "detector", "facts"),
    [
        ("sorry, i can not help.", False, (True, False, True)),
        ("sorry .", True, (True, True, False)),
        ("a banana .", False, (False, False, False)),
    ],
)
def test_a_refusal_is_told_whoever_refused(call, monkeypatch, tmp_path, text, detector, facts):
    from safetykit.export.runtime import answer
    from safetykit.toolkit.model.inputs import Generation

    class Model:
        detector = retriever = None
        inputs = SimpleNamespace(limit=lambda tokens: None)

        def open(self):
            pass

        def generate(self, requests, *_, **__):
            return [Generation(text, (1,), {}, refused=refused) for refused in [detector] * len(requests)]

    monkeypatch.setattr(answer.OnnxVLM, "from_pretrained", lambda *_, **__: Model())
    code, out, _ = call("run", tmp_path, "--prompt", "hello", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert (found["refused"], found["refused_by_detector"], found["refused_by_model"]) == facts


@pytest.mark.parametrize(
    ("option", "value"),
    [("--device", "cpu"), ("--dtype", "float32"), ("--device-map", "auto"), ("--max-memory", "cpu=1GiB")],
)
def test_an_export_is_evaluated_where_onnx_runtime_runs_it(call, records, tmp_path, option, value):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "safetykit.json").write_text("{}")
    needed = ("--device-map", "auto") if option == "--max-memory" else ()
    code, _, err = call("eval", tmp_path / "export", "--data", records, option, value, *needed)
    assert code == 2 and "does nothing without a checkpoint: an export runs in ONNX Runtime" in err


def test_an_encoder_takes_no_option_of_a_model(call, tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"caption": "a red apple"}\n{"caption": "a pear"}\n')
    made = ("index", "build", tmp_path / "captions.jsonl", "--encoder", tmp_path, "-o", tmp_path / "index")
    code, _, err = call(*made, "--dtype", "float32")
    assert code == 2 and "--dtype does nothing with an encoder" in err


def test_options_of_loading_come_from_a_file(call, random_checkpoint, records, tmp_path):
    (tmp_path / "run.yaml").write_text("device: cpu\ndtype: bfloat16\nbatch-size: 2\nmax-new-tokens: 2\n")
    code, out, err = call("eval", random_checkpoint, "--data", records, "--config", tmp_path / "run.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["ran"] == {"device": "cpu", "dtype": "bfloat16", "spread": False}


def test_a_prompt_that_cannot_be_answered_is_named_by_its_place(call, monkeypatch, tmp_path):
    from safetykit.adapters.errors import BatchRefused, RequestRefused, UsageError
    from safetykit.export.runtime import answer
    from safetykit.toolkit.model.inputs import Generation

    class Model:
        detector = retriever = None
        inputs = SimpleNamespace(limit=lambda tokens: None)

        def open(self):
            pass

        def generate(self, requests, *_, **__):
            refused = RequestRefused(1, 2, requests[1].prompt, UsageError("It is too long.", "Shorten it."))
            raise BatchRefused({1: refused}, [Generation("a banana .", (1,), {}), None])

    monkeypatch.setattr(answer.OnnxVLM, "from_pretrained", lambda *_, **__: Model())
    code, out, err = call("run", tmp_path, "--prompt", "hello", "--prompt", "hello again")
    assert code == 2 and out == "a banana .\n"
    assert "error: Prompt 2: It is too long.\nnext:  Shorten it.\n" in err
