"""A chat template that is given: another base, carried by what is made with it, refused where it cannot act."""

from __future__ import annotations

import json

import pytest
import typer

from safetykit import VLM, cli
from safetykit.adapters import UsageError
from safetykit.bench.zoo import build
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Request

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }} "
    "{% endfor %}{% endfor %}ANSWER:"
)
FILES = ("chat_template.jinja", "chat_template.json")
RECORD = {"label": "harmless", "response": "x"}
WORDS = ("what is this ?", "is it dangerous ?", "tell me", "describe this", "how do i use this ?", "a knife")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETYKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [
        {**RECORD, "id": f"{split}-{at}", "split": split, "label": ("harmful", "harmless")[at % 2], "prompt": WORDS[at]}
        for split in ("fit", "calibration", "test")
        for at in range(6)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A small checkpoint without any template."""
    folder = build("llava", tmp_path_factory.mktemp("bare") / "bare")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*_config.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    return folder


def test_a_template_is_another_base_in_python(random_checkpoint, random_vlm, template):
    vlm = VLM.from_pretrained(random_checkpoint, chat_template=template)
    assert vlm.inputs.render(Request("what ?", system="be careful")) == "system: be careful user: what ? ANSWER:"
    assert vlm.fingerprint != random_vlm.fingerprint
    again = VLM.from_pretrained(random_checkpoint, chat_template=TEMPLATE)
    assert (again.fingerprint, again.path) == (vlm.fingerprint, vlm.path)
    weights = "model.safetensors"
    assert (vlm.path / weights).samefile(random_checkpoint / weights)  # no second copy of them
    template.write_text(f"{TEMPLATE} ")
    assert VLM.from_pretrained(random_checkpoint, chat_template=template).fingerprint != vlm.fingerprint


def test_what_is_fitted_and_exported_with_a_template_carries_it(call, bare, template, records, tmp_path):
    """From a checkpoint without any: fitted, evaluated, exported, verified; refused under another template."""
    probe, export = tmp_path / "probe", tmp_path / "export"
    given = ("--chat-template", template)
    fit = ("fit", "one-pass", bare, "--data", records, "--fused-layer", 1, "--refusal", "no .", "-o", probe)
    code, _, err = call(*fit)
    assert code == 2 and f"{bare} has no chat template." in " ".join(err.split()), err
    assert "--chat-template FILE" in err and not probe.exists() and "loading" not in err
    code, _, err = call(*fit, *given)
    assert code == 0, err
    assert json.loads((probe / "fit_options.json").read_text())["chat-template"] == str(template)
    answers = ("eval", bare, "--data", records, "--adapter", probe, "--max-new-tokens", 2)
    code, _, err = call(*answers, *given, "-o", tmp_path / "ours.json")
    assert code == 0, err
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATE.replace("ANSWER", "assistant"))
    code, _, err = call(*answers, "--chat-template", other)
    assert code == 4 and f"It was fitted with --chat-template {template}: pass that, too." in " ".join(err.split())
    exported = ("export", bare, "--adapter", probe, "--parity-rows", 1, "--canaries", 0, "-o", export)
    code, _, err = call(*exported)
    assert code == 2 and "--chat-template FILE" in err and not export.exists(), err
    code, _, err = call(*exported, *given)
    assert code == 0, err
    assert (export / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template.jinja" in json.loads((export / "safetykit.json").read_text())["files"]
    assert OnnxVLM.from_pretrained(export).inputs.render(Request("what ?")) == "user: what ? ANSWER:"
    code, _, err = call("eval", export, "--data", records, "--max-new-tokens", 2, "-o", tmp_path / "theirs.json")
    assert code == 0, err
    decisions = (json.loads((tmp_path / f"{whose}.json").read_text())["decisions"] for whose in ("ours", "theirs"))
    ours, theirs = ([(one["id"], one["text"]) for one in some] for some in decisions)
    assert ours == theirs
    verify = ("verify", export, "--model", bare, "--adapter", probe, "--parity-rows", 1)
    for words, wanted in ((given, 0), (("--chat-template", other), 4)):
        code, _, err = call(*verify, *words)
        assert code == wanted, err
    code, _, err = call("eval", export, "--data", records, *given)
    assert code == 2 and "--chat-template does nothing with the export" in err


def commands(command=None, path=()):
    command = command or typer.main.get_command(cli.application())
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands") and any("--chat-template" in one.opts for one in command.params):
        yield path, [one for one in command.params if one.required]


def typed(path, required, model, records, tmp_path):
    """A command line of ``model``, as far as it is read before the template."""
    known = {"model": model, "data": records, "captions": records, "out": tmp_path / "out"}
    words = [*path]
    for one in required:
        words += [one.opts[0]] if one.param_type_name == "option" else []
        words.append(known.get(one.name, tmp_path))
    return words if any(one.name == "model" for one in required) else [*words, "--model", model]


@pytest.mark.parametrize(("path", "required"), list(commands()), ids=lambda one: " ".join(map(str, one)))
def test_every_command_that_takes_a_model_refuses_what_is_no_template(
    call, path, required, random_checkpoint, records, tmp_path
):
    line = typed(path, required, random_checkpoint, records, tmp_path)
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text("{% for %}")
    code, _, err = call(*line, "--chat-template", wrong)
    assert code == 2 and f"{wrong} does not compile: " in " ".join(err.split()), err
    code, _, err = call(*line, "--chat-template", tmp_path / "gone.jinja")
    assert code == 2 and "gone.jinja cannot be read as a chat template" in " ".join(err.split()), err
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_inspect_reads_the_template_and_verify_needs_a_model(call, random_checkpoint, random_vlm, template, tmp_path):
    code, out, err = call("inspect", random_checkpoint, "--chat-template", template, "--fingerprint", "--json")
    assert code == 0 and json.loads(out)["fingerprint"] not in ("", None, random_vlm.fingerprint), err
    code, _, err = call("verify", tmp_path, "--chat-template", template)
    assert code == 2 and "--chat-template does nothing without a checkpoint as --model" in err


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("{{ 'x' * 10 ** 10 }}", "takes more than"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "takes more than"),
        ("{% include 'x' %}{% endif %}", "does not compile"),
        ("chat.jinja", "A text without `{` is no chat template. Name a file by a Path"),
    ],
)
def test_a_template_that_no_model_has_is_refused(random_checkpoint, text, refused, monkeypatch):
    monkeypatch.setattr("safetykit.toolkit.families.templates.SECONDS", 1.0)
    with pytest.raises(UsageError, match=refused):
        VLM.from_pretrained(random_checkpoint, chat_template=text)


def test_a_checkpoint_without_one_says_so_before_weights_are_read(bare, records, tmp_path, call):
    for line in (("eval", bare), ("diagnose", bare, "-o", tmp_path / "out")):
        code, _, err = call(*line, "--data", records)
        assert code == 2 and "has no chat template" in err and "--chat-template FILE" in err, err
    with pytest.raises(UsageError, match=r"no chat template.*--chat-template FILE"):
        export_onnx(bare, [], tmp_path / "out")
