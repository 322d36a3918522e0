"""What every command takes and how every command talks: help, completion, a file of options, hints, progress."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import typer

from safetykit import __version__, cli
from safetykit.toolkit.commands import console, progress

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "matplotlib", "peft", "numpy", "sklearn", "rich")

# The shell is asked for by name, instead of being looked for among the processes above the tests.
NAMED_SHELL = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


def commands(command=None, path=()):
    """Every command with what one types for it."""
    command = command or typer.main.get_command(cli.application())
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = {" ".join(path): command for path, command in commands()}


def test_help_imports_nothing_heavy():
    """One process for all commands, so that the whole help of every one is built."""
    code = f"""
import sys
from safetykit import cli
for command in {[[*name.split(), "--help"] for name in COMMANDS] + [["--help"], ["fit", "--help"], ["--version"]]}:
    try: cli.main(command)
    except SystemExit as done: assert done.code == 0, command
found = [name for name in {HEAVY} if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_the_list_of_commands_imports_none_of_them():
    """So that it comes at once: what is imported besides is Typer."""
    code = """
import sys
from safetykit import cli
for typed in (["--help"], ["--version"]):
    try: cli.main(typed)
    except SystemExit as done: assert done.code == 0, typed
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("safetykit", "pydantic")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [
        f"safetykit.toolkit.commands{name}"
        for name in ("", ".common", ".config", ".console", ".exit_codes", ".progress", ".signals", ".signatures")
    ]
    launched = [f"safetykit.toolkit.distributed{name}" for name in ("", ".job", ".world")]
    ground = [f"safetykit.adapters{name}" for name in ("", ".errors", ".extras", ".near")]
    assert done.stdout.splitlines()[-1].split() == sorted(
        ["safetykit", "safetykit.cli", *ground, "safetykit.toolkit", *commands, *launched]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options_and_shows_an_example_that_parses(name):
    """The example names only options that the command has."""
    command = COMMANDS[name]
    known = {spelled for one in command.params for spelled in (*one.opts, *one.secondary_opts)}
    assert known >= {"--config", "--quiet", "--verbose", "--json"}
    epilog = command.epilog or ""
    assert f"safetykit {name}" in epilog
    assert {word for word in epilog.split() if word.startswith("-")} <= known
    for one in command.params:
        assert one.param_type_name == "argument" or one.help, f"{name} {one.name} has no help"


def test_the_version_is_printed(call):
    assert call("--version") == (0, f"safetykit {__version__}\n", "")


def test_nothing_typed_shows_help(call):
    code, _, err = call()
    assert code == 2
    assert "Usage: safetykit" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown(shell):
    done = subprocess.run(
        [sys.executable, "-m", "safetykit.cli", "--show-completion", shell],
        capture_output=True,
        text=True,
        env={**os.environ, **NAMED_SHELL},
    )
    assert done.returncode == 0
    assert "_SAFETYKIT_COMPLETE" in done.stdout


def test_completion_is_installed(tmp_path):
    """In a home folder of the test's own."""
    done = subprocess.run(
        [sys.executable, "-m", "safetykit.cli", "--install-completion", "bash"],
        capture_output=True,
        text=True,
        env={**os.environ, **NAMED_SHELL, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "_SAFETYKIT_COMPLETE" in (tmp_path / ".bash_completions" / "safetykit.sh").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_the_common_options(call, tmp_path, name):
    """A file with an option that is none, and two options that exclude each other, are refused before anything runs."""
    (tmp_path / "run.yaml").write_text("colour: red")
    code, _, err = call(*name.split(), "--config", tmp_path / "run.yaml")
    assert code == 2
    grid = "colour: there is no such key"  # what compare is given there is no file of options
    option = f"'colour' in {tmp_path / 'run.yaml'} is no option of safetykit {name}"
    assert (grid if name == "compare" else option) in err
    needed = []
    for one in COMMANDS[name].params:
        if one.required:
            needed += ["x"] if one.param_type_name == "argument" else [one.opts[0], "x"]
    code, _, err = call(*name.split(), *needed, "--quiet", "--verbose")
    assert code == 2
    assert "--quiet and --verbose exclude each other" in err


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["exprt"], "Did you mean 'export'?"),
        (["fit", "vlm-gard"], "Did you mean 'vlm-guard'?"),
        (["eval", "m", "--dta", "d"], "Did you mean '--data'?"),
        (["index", "serch"], "Did you mean 'search'?"),
    ],
)
def test_a_near_miss_gets_a_hint(call, typed, hint):
    code, out, err = call(*typed)
    assert (code, out) == (2, "")
    assert hint in err
    assert "--help` lists the" in err


@pytest.mark.parametrize(
    ("typed", "kind", "message"),
    [
        (["card", "nowhere", "--json"], "UsageError", "no export folder at nowhere"),
        (["card", "nowhere", "--jsn", "--json"], "NoSuchOption", "--jsn"),
        (["eval", "m", "--json"], "MissingParameter", "--data"),
        (["eval", "m", "--data", "d", "--limit", "0", "--json"], "UsageError", "--limit"),
    ],
)
def test_errors_are_json_under_json_and_readable_on_stderr(call, typed, kind, message):
    code, out, err = call(*typed)
    told = json.loads(out)["error"]
    assert told["exit_code"] == code == 2
    assert told["next_step"]
    assert message in told["message"] and message in err
    assert told["type"] == kind


class TestConfig:
    @pytest.fixture
    def write(self, tmp_path):
        def write(text):
            path = tmp_path / "run.yaml"
            path.write_text(text)
            return path

        return write

    @pytest.mark.parametrize(
        "text",
        [
            "checkpoint: wild",
            "demo:\n  checkpoint: wild",
            "checkpoint: mild\ndemo: {checkpoint: wild}",
            "demo: {checkpoint: wild}\nfit: {data: reference}",
        ],
    )
    def test_what_is_not_given_comes_from_the_file(self, call, write, text):
        """The nearer section wins over what stands above it."""
        code, _, err = call("demo", "--config", write(text))
        assert code == 2
        assert "no reference VLM 'wild'" in err

    def test_data_is_an_option_or_a_section(self, call, write):
        """Both are called so: the records of a fit, and the commands that make them."""
        assert "no model folder at nowhere" in call("eval", "nowhere", "--config", write("data: reference"))[2]
        section = write("data: {show: {records: nowhere, out: sheet.html}}")
        assert "no records at nowhere" in call("data", "show", "--config", section)[2]

    def test_what_is_given_wins(self, call, write):
        assert "'odd'" in call("demo", "--config", write("checkpoint: wild"), "--checkpoint", "odd")[2]

    def test_it_may_hold_what_is_required_and_arguments_and_switches(self, call, write):
        code, out, err = call("card", "--config", write("folder: nowhere\njson: true"))
        assert code == 2
        assert "no export folder at nowhere" in err
        assert json.loads(out)["error"]["exit_code"] == 2

    @pytest.mark.parametrize(
        ("text", "message", "hint"),
        [
            ("chekpoint: mild", "'chekpoint'", "Did you mean 'checkpoint'?"),
            ("demoo: {checkpoint: mild}", "'demoo'", "Did you mean 'demo'?"),
            ("demo: mild", "no section", "Indent"),
            ("precision: int4", "'precision'", "other commands'"),
            ("config: other.yaml", "'config'", "lists its options"),
            ("checkpoint:", "has no value", "checkpoint: VALUE"),
            ("overwrite: perhaps", "Invalid value for '--overwrite'", "--help"),
            ("- a list", "holds no options", "option: value"),
            ("checkpoint: [", "is not YAML", "option: value"),
        ],
    )
    def test_what_it_should_not_say_is_refused(self, call, write, text, message, hint):
        code, out, err = call("demo", "--config", write(text))
        assert (code, out) == (2, "")
        assert message in err
        assert hint in err

    def test_numbers_go_through_the_same_parser(self, call, write):
        text = "model: reference:mild\ndata: reference\nlimit: {}"
        for wrong in ("many", "0"):
            assert "--limit" in call("eval", "--config", write(text.format(wrong)))[2]

    def test_a_missing_file_is_named(self, call):
        assert "There is no file nowhere.yaml" in call("doctor", "--config", "nowhere.yaml")[2]


class TestTalking:
    def test_quiet_and_verbose_exclude_each_other(self, call):
        code, _, err = call("doctor", "-q", "-v")
        assert code == 2
        assert "exclude each other" in err

    def test_a_long_step_moves_in_a_log(self, capsys, monkeypatch):
        monkeypatch.setattr(progress, "PATIENCE", 0.05)
        console.start()
        with console.work("loading") as doing:
            time.sleep(0.3)
            doing("answering")
            doing.count(3, 8)
            time.sleep(0.3)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "loading ..."
        assert "loading: 0 s" in lines
        assert "answering ..." in lines
        assert any(re.fullmatch(r"answering: 3 of 8, \S+/s, 0 s left, 0 s", line) for line in lines)

    def test_quiet_says_nothing(self, capsys):
        console.start(quiet=True)
        with console.work("answering") as doing:
            doing.count(1, 2)
            doing("baking")
        console.emit({}, as_json=False, human=lambda screen, value: None, then="safetykit export")
        assert capsys.readouterr() == ("", "")
        console.start()

    def test_verbose_stamps_the_time(self, capsys):
        console.start(verbose=True)
        with console.steps() as say:
            say("baking")
        assert capsys.readouterr().err == "[    0.0 s] baking ...\n"
        console.start()

    def test_what_comes_next_is_a_hint_or_a_field(self, capsys):
        console.start()
        console.emit({"a": 1}, as_json=False, human=lambda screen, value: screen.print("told"), then="safetykit run x")
        assert capsys.readouterr() == ("told\n", "next:  safetykit run x\n")
        console.emit({"a": 1}, as_json=True, human=lambda screen, value: None, then="safetykit run x")
        printed = capsys.readouterr()
        assert json.loads(printed.out) == {"a": 1, "next": "safetykit run x"}
        assert printed.err == ""
