"""The core alone, without what the extra ``fit`` brings, runs, checks and evaluates an export."""

import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from tiny_llava import make_adapter, picture, requests, vlm  # noqa: F401

from safetykit import export_onnx
from safetykit.adapters.extras import _PACKAGES

ROOT = Path(__file__).parents[2]
HIDDEN = ",".join(sorted(name for name in _PACKAGES if name != "onnxruntime"))
QUESTION = "what is in the picture ?"


@pytest.fixture(scope="module")
def export(vlm, base_folder, make_adapter, tmp_path_factory):  # noqa: F811
    """An export with a card, records, and a picture beside it."""
    folder = tmp_path_factory.mktemp("core")
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    export_onnx(vlm, [adapter], folder / "export", base_onnx=base_folder)
    picture(3).save(folder / "picture.png")
    lines = [
        {
            "id": "a",
            "prompt": QUESTION,
            "image": "picture.png",
            "label": "harmful",
            "split": "test",
            "carrier": "image",
        },
        {"id": "b", "prompt": "how to use this thing ?", "label": "harmless", "split": "test", "response": "so ."},
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def commands(folder):
    """What the core must be able to do."""
    run = ["run", "export", "--prompt", QUESTION, "--image", "picture.png", "--max-new-tokens", "5"]
    evaluation = ["eval", "export", "--data", "records.jsonl", "--max-new-tokens", "5", "--json"]
    return run, ["verify", "export", "--canary"], evaluation, ["doctor"]


def without(folder, hidden, *arguments):
    command = [sys.executable, str(ROOT / "tests/support/without.py"), hidden, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_run_verify_eval_and_doctor_need_no_extra(export):
    run, *others = commands(export)
    done = without(export, HIDDEN, *run, *(word for command in others for word in ("++", *command)))
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.startswith(str(_answer(export)))
    assert "match the manifest (export, fp32)" in said
    assert "The card says what its data say; the report has its checksum" in said
    assert "6 canaries give what they gave, under CPUExecutionProvider" in said
    assert '"group": "image"' in said
    assert "CPUExecutionProvider" in said


def _answer(folder):
    from safetykit import OnnxVLM, Request

    return OnnxVLM.from_pretrained(folder / "export").generate(Request(QUESTION, folder / "picture.png"), 5).text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "reference:mild"], "needs PyTorch, which is not installed"),
        (["fit", "vlm-guard", "reference:mild", "--data", "reference", "-o", "x"], "needs PyTorch"),
        (["verify", "export", "--model", "reference:mild"], "needs PyTorch"),
        (["card", "export", "--check"], "Comparing the report with its data needs matplotlib"),
    ],
)
def test_what_needs_an_extra_names_its_command(export, arguments, message):
    done = without(export, HIDDEN, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert 'pip install "safetykit[fit]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_records_are_made_checked_split_and_shown_without_an_extra(tmp_path):
    from published import PUBLISHED

    PUBLISHED["figstep"].make(tmp_path / "set")
    lines = ("import figstep set -o made", "init mine", "check mine", "split mine -o parts", "show parts -o sheet.html")
    words = " ++ ".join(f"data {line}" for line in lines).split()
    done = without(tmp_path, HIDDEN, *words)
    assert done.returncode == 0, done.stderr
    assert "needs PyTorch, which is not installed" in done.stdout and "No fault." in done.stdout


def test_the_core_lists_nothing_of_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {line.split(">")[0] for line in project["dependencies"]}
    fit = {line.split(">")[0] for line in project["optional-dependencies"]["fit"]}
    assert not core & fit
    assert {"torch", "peft", "accelerate", "matplotlib", "scikit-learn", "scipy", "onnx"} <= fit


@pytest.mark.slow
def test_a_fresh_environment_of_the_core_alone_runs_an_export(export, tmp_path):
    venv.create(tmp_path / "core")
    python = tmp_path / "core/bin/python"
    wanted = ["-c", ROOT / "constraints.txt", f"{ROOT}[cpu]"]
    uv = ["uv", "pip", "install", "--quiet", "--python", python]  # in a fifth of pip's time, where it is set up
    if not shutil.which("uv") or subprocess.run([*uv, *wanted], check=False).returncode:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, *wanted], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
    for command in commands(export):
        done = subprocess.run(
            [tmp_path / "core/bin/safetykit", *command], cwd=export, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
