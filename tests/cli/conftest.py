"""The command line in this process, and adapters for the random checkpoint, made without a fit."""

import json

import pytest
import torch
from kept_answers import ANSWERS
from workshop import safetykit

from safetykit import cli


@pytest.fixture
def make_adapter(random_vlm):
    from safetykit.adapters import Adapter, Intervention, Site
    from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo

    def make(site="decoder.layers.2", amount=5.0):
        tensors = {"basis": torch.eye(128)[:, :1], "mean": torch.full((128,), amount), "beta": torch.tensor(1.0)}
        info = AdapterInfo(
            method="test",
            variant="test",
            sign_convention="none",
            hyperparameters={},
            seed=None,
            base=random_vlm.base,
            data=DataInfo(sha256="0" * 64, counts={}),
            versions={},
        )
        return Adapter(info, (Intervention("SubspaceProjection", Site.parse(site), "all", "both", tensors),))

    return make


@pytest.fixture
def adapter_folder(make_adapter, tmp_path):
    return make_adapter().save(tmp_path / "adapter")


@pytest.fixture
def call(capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture
def refused(call, monkeypatch, tmp_path):
    """A command line that must fail without weights; gives what it says."""
    from safetykit.export.runtime import graphs
    from safetykit.toolkit.model import loadable
    from safetykit.toolkit.retrieval import embedders

    def loaded(*_, **__):
        pytest.fail("weights were loaded")

    for module, name in ((loadable, "load_model"), (graphs, "open_session"), (embedders, "_load")):
        monkeypatch.setattr(module, name, loaded)
    monkeypatch.chdir(tmp_path)

    def run(*typed, code=2):
        found, out, err = call(*typed)
        assert (found, out) == (code, ""), err
        assert not (tmp_path / "out").exists()
        return err.replace("\nnext: ", "")

    return run


@pytest.fixture
def data(tmp_path):
    def write(found):
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(map(json.dumps, found)))
        return path

    return write


@pytest.fixture
def kept(tmp_path):
    """An evaluation of these answers, and their records."""
    decisions, records = [], []
    for key, (label, response, text) in ANSWERS.items():
        shared = {"id": key, "label": label, "carrier": "text"}
        records.append({**shared, "prompt": f"ask {key}", "split": "test", "response": response})
        decisions.append({**shared, "tags": [], "text": text, "outcome": "other", "scores": {}})
    (tmp_path / "records.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    body = {"model": "m", "split": "test", "max_new_tokens": 8, "rows": [], "decisions": decisions}
    (tmp_path / "kept.json").write_text(json.dumps(body))
    return tmp_path


@pytest.fixture
def judged(kept):
    """Judge them by what is typed; gives what was printed and what was written."""

    def run(*specs, more=()):
        out = kept / f"out-{len(list(kept.iterdir()))}.json"
        typed = [word for spec in specs for word in ("--judge", spec)]
        done = safetykit("judge", kept / "kept.json", "--data", kept / "records.jsonl", *typed, "-o", out, *more)
        return done, json.loads(out.read_text()) if out.exists() else None

    return run
