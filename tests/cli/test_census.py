"""The census: there is no option and no value of a choice that no test passes through the command line."""

import pytest
import typer
from command_cases import CASES

from safetykit import cli
from safetykit.toolkit.commands.config import spelling

# Passed to every command by test_common.py; --base by test_peft_folder.py and --chat-template by
# test_chat_template_option.py, which are read before a command starts, and
# the policy by test_signing.py to every command that opens adapters or exports, and budgets by test_budget.py and
# test_calibrate.py to every command that can keep one.
SHARED = {"--config", "--quiet", "--verbose", "--help", "--base", "--chat-template", "--policy", "--require-signature"}
BUDGET = {"--max-over-refusal", "--max-utility-loss", "--budget-by", "--confidence"}


def commands(command=None, path=()):
    command = command or typer.main.get_command(cli.application())
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


COMMANDS = dict(commands())


def passed(name, command):
    """What the cases pass to a command: option spelling (with its parameter) → values."""
    by_word = {word: one for one in command.params for word in (*one.opts, *one.secondary_opts)}
    found = {}
    for case in CASES:
        words = case.words
        if words[: len(name.split())] != name.split():
            continue
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word in by_word:
                found.setdefault(word, set()).add(following)
    return found


def choices(one):
    """The values of an option with a fixed choice, as its help shows them."""
    return one.metavar.split("|") if one.metavar and "|" in one.metavar else []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_passed(name):
    command = COMMANDS[name]
    found = passed(name, command)
    options = [one for one in command.params if one.param_type_name != "argument"]
    missing = []
    for one in options:
        long = f"--{spelling(one)}"
        if long in SHARED or (name.startswith(("fit ", "calibrate")) and long in BUDGET):
            continue
        if not found.keys() & set(one.opts):
            missing.append(long)
        # A switch that is on by default is passed by its other name, too.
        missing += [word for word in one.secondary_opts if one.default is not False and word not in found]
    assert not missing, f"no test passes {', '.join(missing)} to safetykit {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_of_a_choice_is_passed(name):
    command = COMMANDS[name]
    found = passed(name, command)
    missing = []
    for one in command.params:
        if name.startswith(("fit ", "calibrate")) and BUDGET & set(one.opts):
            continue
        given = set().union(*(found.get(word, set()) for word in one.opts))
        missing += [f"{one.opts[-1]} {value}" for value in choices(one) if value not in given]
    assert not missing, f"no test passes {', '.join(missing)} to safetykit {name}"


def test_no_case_names_an_option_that_there_is_not():
    for case in CASES:
        name = max((one for one in COMMANDS if case.line.startswith(f"{one} ")), key=len)
        known = {word for one in COMMANDS[name].params for word in (*one.opts, *one.secondary_opts)}
        unknown = [word for word in case.words if word.startswith("-") and word not in known]
        assert not unknown, (case.line, unknown)
