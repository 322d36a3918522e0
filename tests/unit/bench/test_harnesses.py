"""Harnesses of others: their environments are made once, their answers compared, their failures told."""

import json
import sys
from pathlib import Path

import pytest

from safetykit.bench import harnesses

ASKED = [
    {"id": "a", "prompt": "?", "image": None, "expected": "yes .", "refused": False},
    {"id": "b", "prompt": "?", "image": None, "expected": "no .", "refused": True},
]


def test_an_environment_is_made_once_with_the_packages_alone(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(harnesses.subprocess, "run", lambda words, check: ran.append(words))
    place = harnesses.environment("garak", tmp_path)
    assert place == tmp_path / "garak" and [one[-1] for one in ran] == [str(place), "torch==2.13.0", "garak==0.17.1"]
    harnesses.environment("lmms_eval", tmp_path)
    assert "uninstall" in ran[-1] and ran[-1][-1] == "torchvision" and len(ran) == 7
    harnesses.environment("promptfoo", tmp_path)
    assert ran[-1][0] == "npm" and "--ignore-scripts" in ran[-1]
    (tmp_path / "promptfoo/node_modules").mkdir()
    assert harnesses.environment("promptfoo", tmp_path) and len(ran) == 8


def test_answers_that_a_harness_does_not_keep_are_not_compared():
    answers = {"a": {"text": "no .", "refused": False}, "b": {"text": None, "refused": True}}
    assert harnesses.compared(ASKED, answers) == {"decisions": [2, 2], "texts": [0, 1]}
    assert harnesses.compared(ASKED, {}) == {"decisions": [0, 0], "texts": [0, 0]}


@pytest.mark.parametrize(
    "script, found",
    [
        ("import sys; sys.exit('the hub is not there')", {"failed": "the hub is not there"}),
        ("import sys; sys.exit(3)", {"failed": "exit code 3"}),
        (
            "import json, sys; job = json.load(open(sys.argv[1]))\n"
            "answers = {one['id']: {'text': one['expected'], 'refused': False} for one in job['records']}\n"
            "json.dump({'version': '1', 'report': job['url'], 'answers': answers}, open(sys.argv[2], 'w'))",
            {"report": "http://x/v1", "decisions": [1, 2], "texts": [2, 2]},
        ),
    ],
)
def test_a_script_answers_a_job_or_its_last_words_are_told(tmp_path, monkeypatch, script, found):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "ask.py").write_text(script)
    monkeypatch.setattr(harnesses, "_SCRIPTS", tmp_path)
    monkeypatch.setitem(harnesses.HARNESSES, "mine", harnesses.Harness("ask.py", (), ""))
    told = harnesses.ask("mine", tmp_path, "http://x", ASKED, tmp_path / "work")
    assert {name: told[name] for name in found} == found
    assert json.loads((tmp_path / "work/job.json").read_text())["model"] == "bench"


def test_every_harness_has_its_script():
    folder = Path(harnesses.__file__).parent / "harness"
    scripts = {path.name for path in folder.iterdir() if path.suffix in (".py", ".mjs")}
    assert {one.script for one in harnesses.HARNESSES.values()} == scripts
